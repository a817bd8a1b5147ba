"""What `train.epochs = 0` does not fit: keys that only act on training, and read-outs that need a trained model.

Asked by the run file's model. With `epochs = 0` a run only sums features and solves for a read-out.
"""

from __future__ import annotations

from collections.abc import Iterator

from fednc.common.config.tables import InitSection, MethodSection, RoundsSection, TaskSection


def problems(
    task: TaskSection, method: MethodSection, init: InitSection, rounds: RoundsSection, sessions: int
) -> Iterator[str]:
    """One clause for each setting that cannot work, with what to set instead. `sessions`: how many there are."""
    if not method.reads_memory or method.readout_needs.needs_vertices:
        yield (
            f"method.readout = {method.readout!r} needs a trained model; use 'ridge', 'discriminant' or 'memory', "
            "which need only class sums"
        )
    if method.server_step:
        yield f"method.server_step = {method.server_step!r} acts on updates; leave it out"
    for part in method.parts:
        if part.acts_in_training:
            yield f"method {part.name!r} acts on training; use fedavg or fednc without its keys"
    if method.trains_with_memory:
        yield "method.anchor, centre, rehearsal and target_blend act on training; set them to 0"
    if method.projection != "trained":
        yield f"method.projection = {method.projection!r}: there is no projection then; leave it out"
    if method.memory_model != "global" or method.memory_source != "memory":
        yield "method.memory_model and memory_source must have their defaults, 'global' and 'memory'"
    if task.adapter_rank:
        yield "task.adapter_rank: adapters that are not trained do nothing; set it to 0"
    if init.kind != "ordinary" or init.report:
        yield "[init] prepares training; set init.kind to 'ordinary' and init.report to false"
    if rounds.robust != "none":
        yield "rounds.robust acts on updates, not on class sums; set it to 'none'"
    if sessions:
        yield "[[sessions]] train; leave them out"
