"""Frame, class memory, heads, losses and read-outs."""
