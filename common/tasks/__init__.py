"""The contract of a task, finding tasks by name, and what all tasks need: classes, stages, splits, metrics."""
