"""Looking at the folders of runs from outside: what each is and how far it got. Reads, never writes."""
