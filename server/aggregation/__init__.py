"""The exact weighted mean of updates, the integer sums it is built on, and defences against odd updates."""
