"""Runs other people's Flower ServerApps, each in its own process."""
