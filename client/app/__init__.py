"""fednc's own Flower app on a client: the host in the link, the run that stays loaded, the dry run."""
