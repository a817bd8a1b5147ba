"""The image classification task. `task.py` is its entry point; only the task `fewshot` imports it from outside."""
