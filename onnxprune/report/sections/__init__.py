"""One file a section: report data -> what a template draws, or None where it does not apply."""
