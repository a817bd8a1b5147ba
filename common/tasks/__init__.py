"""What a task is, how one is found by name, and what all tasks need: classes, stages, splits."""
