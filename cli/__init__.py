"""The `fednc` command: one file per subcommand, no logic."""
