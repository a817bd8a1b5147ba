"""Local training: the trainer, what a client remembers between rounds, CUDA graphs."""
