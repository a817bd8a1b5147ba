"""Model as a service: versions of models from a source, batched, answered over REST and gRPC (`fednc serve`).

Reads exported models and never a run's data. Keeps no state on disk: a killed server starts again as it was.
"""
