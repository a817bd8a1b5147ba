"""What checks and disturbs a federation in containers from outside."""
