"""Changes to the drawn weights before round 1: the numerics, for both sides of the link and for one process."""
