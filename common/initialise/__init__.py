"""Before round one: what happens to the drawn weights. Pure numerics, for both sides of the link and for one process."""
