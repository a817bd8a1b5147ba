"""Set-up of a process: signals, garbage collection, log format, Flower's environment, the pipe to another app."""
