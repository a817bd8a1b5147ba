"""Who may call the server: identity, bans, and the set-up of TLS and tokens."""
