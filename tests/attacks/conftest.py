"""Attacks by admitted nodes. They take minutes; `make test-attacks` runs them."""
