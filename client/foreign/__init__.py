"""Flower apps that are not fednc's, each in its own process."""
