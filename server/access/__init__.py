"""Decides who may call the server: identity, bans, open calls, and the set-up of TLS and tokens."""
