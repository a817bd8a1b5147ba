"""What people look at after a run: the examples that a model is least sure of, and a report in plain language."""
