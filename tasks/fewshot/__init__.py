"""Few-shot class-incremental image classification. Entered through `task.py`; nothing outside names its files."""
