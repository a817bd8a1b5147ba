"""Readers of pictures with a value for every pixel: folders, arrays, CamVid, generated scenes."""
