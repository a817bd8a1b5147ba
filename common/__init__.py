"""What server and client must agree on."""
