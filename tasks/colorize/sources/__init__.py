"""Readers of pairs of lines and colours: folders, arrays, pictures alone, generated characters."""
