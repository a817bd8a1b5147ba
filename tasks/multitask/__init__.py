"""Several values for every pixel at once, of which each site may know some. `task.py` is its entry point."""
