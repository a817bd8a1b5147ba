"""Flower apps that are not ours, each in a process of its own."""
