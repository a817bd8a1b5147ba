"""Pipelines: a run from its check to the served model, step by step, resumed after a kill."""
