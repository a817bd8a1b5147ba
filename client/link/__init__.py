"""The client's connection to the server: assignments, transfers, the worker that runs the app."""
