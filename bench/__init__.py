"""What the README's numbers come from. Run each script from the repository's root."""
