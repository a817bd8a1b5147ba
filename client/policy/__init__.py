"""What a client's owner allows, and the log of what left the machine."""
