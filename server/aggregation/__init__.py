"""The exact weighted mean of updates, and the integer sums under it."""
