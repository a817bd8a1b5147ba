"""Searches for the best settings of a run: each trial is a short federated run over the same attending clients."""
