"""The run file: one model for each of its tables, and the presets of the methods."""
