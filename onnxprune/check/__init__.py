"""Proofs: the masked original and the slim model give the same."""
