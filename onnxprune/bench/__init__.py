"""Timing models against each other, on the providers that really ran them."""
