"""The task of semantic segmentation: a class for every pixel. `task.py` is its entry point."""
