"""What runs in the server process."""
