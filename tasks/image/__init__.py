"""Image classification: the first task. Entered through `task.py`; nothing outside this folder names its files."""
