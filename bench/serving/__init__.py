"""`fednc bench serve`: how many requests a served model answers, beside a bare FastAPI handler in the same run."""
