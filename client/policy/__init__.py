"""The policy of a client's owner, and the log of what left the machine."""
