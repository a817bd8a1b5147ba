"""What runs on an edge machine."""
