"""Local training: the trainer, the terms of each method, CUDA graphs."""
