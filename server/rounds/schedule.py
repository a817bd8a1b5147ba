"""Decides what a round includes besides training: evaluation, sums of local models, a new class memory.

Called by the strategy. Depends only on the run file and the stage, so a restarted server decides the same.
"""

from __future__ import annotations

from fednc.common.config.run import RunConfig
from fednc.common.tasks.stages import Stage


def evaluates(run: RunConfig, stage: Stage, server_round: int) -> bool:
    """Whether the round ends with an evaluation: every `evaluate_every`-th does, and the last of each stage."""
    every = run.rounds.evaluate_every
    return server_round == stage.last or (every > 0 and server_round % every == 0)


def wants_local_sums(run: RunConfig, stage: Stage, server_round: int) -> bool:
    """Whether clients send class sums of their local models, for the drift metric or a memory built from them.

    Never in sessions, where the features are frozen and were pooled when the session was opened. Never without
    classes.
    """
    if not stage.is_first or not stage.classes:
        return False
    return evaluates(run, stage, server_round) or run.method.memory_model == "local"


def wants_global_memory(
    run: RunConfig, stage: Stage, server_round: int, *, evaluating: bool, takes_sessions: bool
) -> bool:
    """Whether clients are asked for class sums of the round's global model.

    With sessions, only once, at the end of the first stage: later classes are pooled when their session opens.
    """
    if takes_sessions:
        return stage.is_first and server_round == stage.last
    if run.method.memory_model == "local" or not run.method.uses_memory:
        return False
    return evaluating or run.method.trains_with_memory or run.method.fits_projection
