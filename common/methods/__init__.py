"""The methods, one file with one class each; `registry.py` finds them by name."""
