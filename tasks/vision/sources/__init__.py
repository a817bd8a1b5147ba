"""Readers of images: arrays, files, the Hugging Face hub."""
