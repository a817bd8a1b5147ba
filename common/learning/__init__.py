"""The frame, the class memory, heads, losses, read-outs and optimisers."""
