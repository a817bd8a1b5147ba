"""Signals: windows of several channels, such as motion, ECG or vibration, each with a class."""
