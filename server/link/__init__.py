"""The server's end of the link: nodes, assignments, uploads, downloads, and the limits of each."""
