"""Checks a federation in containers from outside, and kills its containers."""
