"""Before round one: what becomes of the drawn weights. Numerics, for both sides of the link and one process."""
