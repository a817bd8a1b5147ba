"""What a round holds besides training: an evaluation, sums of local models, a new class memory.

Asked by the strategy. Follows from the run file and the stage alone, so that a restarted server does the same.
"""

from __future__ import annotations

from fednc.common.config.run import RunConfig
from fednc.common.tasks.stages import Stage


def evaluates(run: RunConfig, stage: Stage, server_round: int) -> bool:
    """Whether the round ends with an evaluation: every n-th does, and the last of each stage."""
    every = run.rounds.evaluate_every
    return server_round == stage.last or (every > 0 and server_round % every == 0)


def wants_local_sums(run: RunConfig, stage: Stage, server_round: int) -> bool:
    """Sums of the trained local models: for the drift metric, and for a memory made of them.

    Not in sessions: what they are sums of is frozen there, and was pooled when the session was opened. Not without
    classes.
    """
    if not stage.is_first or not stage.classes:
        return False
    return evaluates(run, stage, server_round) or run.method.memory_model == "local"


def wants_global_memory(
    run: RunConfig, stage: Stage, server_round: int, *, evaluating: bool, takes_sessions: bool
) -> bool:
    """Whether clients are asked for the class sums of the round's model.

    Where classes come in sessions, once at the end of the beginning: later classes are pooled as they come.
    """
    if takes_sessions:
        return stage.is_first and server_round == stage.last
    if run.method.memory_model == "local" or not run.method.uses_memory:
        return False
    return evaluating or run.method.trains_with_memory
