"""What the server keeps on disk: checkpoints, the run folder, history, the event log."""
