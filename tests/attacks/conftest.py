"""Attacks by nodes that are let in: they take minutes, `make test-attacks` runs them."""
