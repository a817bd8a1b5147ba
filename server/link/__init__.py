"""The server's side of the link: nodes, assignments, uploads, downloads, and the limits of each."""
