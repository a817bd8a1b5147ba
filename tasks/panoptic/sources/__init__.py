"""Readers of pictures with objects and parts, beside those that all dense tasks have."""
