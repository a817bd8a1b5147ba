"""What tasks with a value for every pixel share: readers, crops, metrics, scenes, models. Not a task itself."""
