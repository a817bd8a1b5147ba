"""Versions of models in an MLflow store: register, aliases, lineage, versions of the data, digests."""
