"""Colour for line art after a reference picture: attention without gradients through its map (SGA)."""
