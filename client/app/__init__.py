"""The Flower app of a client: the run that stays loaded, what is remembered, the dry run."""
