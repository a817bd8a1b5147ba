"""The web page of the person who runs a federation: `fednc console`. Reads everything, decides nothing by
itself.
"""
