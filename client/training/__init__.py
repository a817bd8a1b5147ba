"""Local training: the trainer, the state that a client keeps between rounds, CUDA graphs."""
