"""The task of few-shot class-incremental image classification. `task.py` is its entry point."""
