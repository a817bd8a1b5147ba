"""Reads windows of signals from .npz files, and from recordings in CSV and parquet files."""
