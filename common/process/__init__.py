"""What a process sets up for itself: signals, garbage collection, Flower's environment."""
