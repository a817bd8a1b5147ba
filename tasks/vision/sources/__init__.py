"""Readers of images from arrays, files and the Hugging Face hub."""
