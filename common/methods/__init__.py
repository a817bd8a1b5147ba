"""The methods: one class in one file each, found by name in `registry.py`."""
