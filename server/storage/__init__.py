"""What the server keeps: checkpoints, the run folder, history, the event log."""
