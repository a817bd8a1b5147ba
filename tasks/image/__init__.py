"""The image classification task. `task.py` is its entry point; other files here are for this folder only."""
