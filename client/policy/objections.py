"""A policy's objections to a run, an instruction or a finished reply. Finds them; does nothing about them.

Called by `guard.py` and `preview.py`. A run is judged by its file before data is loaded, a reply by its content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fednc.client.app.withheld_sums import fitting_batch
from fednc.client.policy.rules import Policy
from fednc.common.config.run import RunConfig
from fednc.common.initialise import messages
from fednc.common.methods import registry
from fednc.common.tasks import discovery, probe
from fednc.common.wire import arrays
from fednc.common.wire import messages as exchange
from fednc.common.wire.messages import (
    CALIBRATE,
    DATA,
    DATA_SUMS,
    EVALUATE,
    EXAMPLES,
    HELLO,
    MEMORY,
    METRICS,
    PERSONAL,
    PROBE,
    STATS,
    SUMS,
    TRAIN,
    Instruction,
)
from fednc.common.wire.records import record_of
from fednc.protos import federation_pb2 as pb

GRADIENTS = (messages.GRADIENT, messages.SLOPE, messages.SCALES)
MEASURES = (EVALUATE, CALIBRATE, PERSONAL)  # answered with statistics over the held-out examples
KINDS = (HELLO, DATA_SUMS, PROBE, TRAIN, MEMORY, *MEASURES, *GRADIENTS)


class Objection(NamedTuple):
    """A code of `rules.SENTENCES`, and for the owner what was asked and what the policy says."""

    code: str
    detail: str


def to_run(policy: Policy, run: RunConfig, *, has_part: bool) -> Iterator[Objection]:
    """Objections to the run file, before any data is read."""
    runs, method = policy.runs, run.method
    if runs.tasks and run.task.name not in runs.tasks:
        yield Objection("task", f"task {run.task.name!r}; runs.tasks allows {', '.join(runs.tasks)}")
    if runs.methods and method.name not in runs.methods:
        yield Objection("method", f"method {method.name!r}; runs.methods allows {', '.join(runs.methods)}")
    if runs.digests and run.digest not in runs.digests:
        yield Objection("run", f"digest {run.digest} is not among runs.digests")
    if not policy.allow.subsets and (run.split is not None or has_part or run.sessions):
        yield Objection("subset", "the run has a [split] or [[sessions]]; allow.subsets = false")
    if runs.rounds and run.all_rounds > runs.rounds:
        yield Objection("rounds", f"{run.all_rounds} rounds; runs.rounds = {runs.rounds}")
    if run.train.batch < policy.floor.batch:
        yield Objection("batch", f"train.batch = {run.train.batch}; floor.batch = {policy.floor.batch}")
    yield from _to_rates(policy, run)


def _to_rates(policy: Policy, run: RunConfig) -> Iterator[Objection]:
    """Objections to rates at which the first batch or the last decides the update alone."""
    ceiling = policy.ceiling
    if (ceiling.lr or ceiling.forgetting) and not run.train.is_plain_sgd:
        options = ", ".join(sorted(run.train.optimizer_options))
        asked = run.train.optimizer + (f" with {options}" if options else "")
        yield Objection(
            "optimizer",
            f"train.optimizer = {asked}; ceiling.lr = {ceiling.lr:g} and ceiling.forgetting = "
            f"{ceiling.forgetting:g} can only be judged for sgd without options",
        )
    lr = run.train.lr * max([1.0, *(session.lr_factor for session in run.sessions)])
    lr = max(lr, run.probe.lr if run.probe else 0.0)  # candidates are trained too
    if policy.ceiling.lr and lr > policy.ceiling.lr:
        yield Objection("rate", f"a learning rate of {lr:g}; ceiling.lr = {policy.ceiling.lr:g}")
    forgetting = (
        lr
        / (1 - run.train.momentum)
        * (run.train.weight_decay + sum(part.pull for part in registry.parts(run.method)))
    )
    if policy.ceiling.forgetting and forgetting > policy.ceiling.forgetting:
        yield Objection(
            "rate", f"{forgetting:g} is forgotten per step; ceiling.forgetting = {policy.ceiling.forgetting:g}"
        )


def to_data(policy: Policy, run: RunConfig, held: pb.Declaration) -> Iterator[Objection]:
    """Objections to the run with this client's data."""
    floor = policy.floor
    if held.examples < max(floor.examples, floor.batch):
        yield Objection("examples", f"{held.examples} training examples; floor.examples = {floor.examples}")
    batch = fitting_batch(held.examples, run.train.batch, floor.batch)
    steps = math.ceil(run.train.epochs * math.ceil(held.examples / batch) / run.train.accumulate)
    if steps < floor.steps and run.train.epochs:  # with epochs = 0 there is no update
        yield Objection("steps", f"{steps} steps in an update; floor.steps = {floor.steps}")
    classes = sum(count > 0 for count in held.class_counts)
    if classes < floor.classes:
        yield Objection("classes", f"{classes} classes with examples; floor.classes = {floor.classes}")


def to_coming(policy: Policy, run: RunConfig) -> Iterator[Objection]:
    """Objections to what the run will ask for while this client takes part; for people to read."""
    if not policy.allow.gradients and (run.init.kind != "ordinary" or run.init.report):
        yield Objection("gradients", "the initialisation asks for gradients; allow.gradients = false")
    if not policy.allow.probe and run.probe is not None:
        yield Objection("probe", "clients try candidates before round 1; allow.probe = false")
    if not policy.allow.class_sums:
        use = "the method needs them" if run.method.uses_memory else "this method only measures with them"
        yield Objection("class-sums", f"{use}; allow.class_sums = false")
    if not policy.allow.evaluation:
        yield Objection("evaluation", "clients evaluate the model; allow.evaluation = false")
    if not policy.allow.personal and run.personal is not None:
        yield Objection("personal", "clients adapt the final model to their own data; allow.personal = false")


def to_holdings(
    policy: Policy, run: RunConfig, held: pb.Declaration, having: Sequence[int]
) -> Iterator[Objection]:
    """Like `to_coming`, with this client's data; `having` are the examples that have each class."""
    floor = policy.floor
    if policy.allow.evaluation and held.held_out < floor.held_out:
        yield Objection("examples", f"{held.held_out} examples held out; floor.held_out = {floor.held_out}")
    if not policy.allow.data_sums and discovery.get(run).no_data_sums():
        yield Objection("data-sums", "the task normalises with sums of the data; allow.data_sums = false")
    few = sum(0 < count < floor.sum_examples for count in having)
    if policy.allow.class_sums and run.method.uses_memory and few:
        yield Objection(
            "sum",
            f"the sums of {few} classes with fewer than floor.sum_examples = {floor.sum_examples} are not sent",
        )


def to_instruction(policy: Policy, run: RunConfig, order: Instruction, kind: str) -> Iterator[Objection]:
    """Objections to one instruction of the admitted run."""
    if kind not in KINDS:
        yield Objection("kind", f"{kind!r:.80}")
    if not 0 <= order.server_round <= run.all_rounds:
        yield Objection("rounds", f"round {order.server_round} of {run.all_rounds}")
    if kind in GRADIENTS:
        yield from _to_gradients(policy, run, kind)
    if kind == MEMORY and not policy.allow.class_sums:  # those of an update are empty, see `Owner.bind`
        yield Objection("class-sums", "allow.class_sums = false")
    if kind in MEASURES and not policy.allow.evaluation:
        yield Objection("evaluation", "allow.evaluation = false")
    if kind == PROBE and not policy.allow.probe:
        yield Objection("probe", "allow.probe = false")
    if kind == PERSONAL and not policy.allow.personal:
        yield Objection("personal", "allow.personal = false")


def _to_gradients(policy: Policy, run: RunConfig, kind: str) -> Iterator[Objection]:
    if not policy.allow.gradients:
        yield Objection("gradients", "allow.gradients = false")
    parts = run.init.sub_batches if kind == messages.SCALES else 1
    batch = min(run.init.batch // parts, run.evaluate.batch)  # the latter for `init.report`
    if batch < policy.floor.batch:
        yield Objection("batch", f"a gradient over {batch} examples; floor.batch = {policy.floor.batch}")
    if run.sessions and policy.floor.batch > 1:
        yield Objection("batch", "in a run with [[sessions]] the number of examples of a gradient is unknown")


def to_reply(
    policy: Policy, kind: str, content: RecordDict, held: pb.Declaration, having: Sequence[int]
) -> Iterator[Objection]:
    """Objections to a finished reply, by its content.

    A class sum counts members, which may be pixels; `having` are this client's examples that have each class.
    """
    floor, metrics = policy.floor, record_of(content, METRICS, MetricRecord) or MetricRecord()
    examples = int(metrics.get(EXAMPLES, 0))  # type: ignore[arg-type]
    if kind in (TRAIN, MEMORY):
        least = max(floor.examples, floor.batch if kind == TRAIN else 0)
        if examples < least or (examples != held.examples and not policy.allow.subsets):
            yield Objection("examples", f"made of {examples} of {held.examples}; at least {least}")
        if kind == TRAIN and int(metrics.get("steps", 0)) < floor.steps:  # type: ignore[arg-type]
            yield Objection("steps", f"{metrics.get('steps')} steps; floor.steps = {floor.steps}")
    if kind == PROBE and (stats := record_of(content, STATS, ArrayRecord)):
        yield from _to_probe(policy, arrays.from_record(stats))
    if kind in MEASURES and examples < floor.held_out:
        yield Objection("examples", f"made of {examples}; floor.held_out = {floor.held_out}")
    if record_of(content, SUMS, ArrayRecord) is not None:
        yield from _to_sums(policy, content, held, having)
    if record_of(content, DATA, ArrayRecord):
        yield from _to_data_sums(policy, examples, held)


def _to_probe(policy: Policy, sums: Mapping[str, Tensor]) -> Iterator[Objection]:
    floor, trained, held = policy.floor, int(sums[probe.TRAINED]), int(sums[probe.HELD])
    if trained < max(floor.examples, floor.batch) or held < floor.held_out:
        yield Objection(
            "examples",
            f"candidates trained on {trained} and judged by {held} examples; floor.examples = {floor.examples}, "
            f"floor.held_out = {floor.held_out}",
        )


def _to_data_sums(policy: Policy, examples: int, held: pb.Declaration) -> Iterator[Objection]:
    """Objections to sums of the data over so many examples; there are none to an empty record."""
    least = max(policy.floor.examples, policy.floor.sum_examples)
    if not policy.allow.data_sums:
        yield Objection("data-sums", "allow.data_sums = false")
    if examples < least:
        yield Objection("sum", f"sums of the data over {examples} examples; at least {least}")
    if examples != held.examples and not policy.allow.subsets:
        yield Objection("subset", f"sums of the data over {examples} of {held.examples} examples")


def _to_sums(
    policy: Policy, content: RecordDict, held: pb.Declaration, having: Sequence[int]
) -> Iterator[Objection]:
    sums, floor = exchange.sums_of(content), policy.floor
    counts = sums.count_K.long().tolist()
    summed = [count for count in counts if count]
    if summed and not policy.allow.class_sums:
        yield Objection("class-sums", "allow.class_sums = false")
    fewest = min((min(pair) for pair in zip(counts, having, strict=True) if pair[0]), default=floor.sum_examples)
    if fewest < floor.sum_examples:
        yield Objection("sum", f"a sum over {fewest} examples; floor.sum_examples = {floor.sum_examples}")
    if 0 < len(summed) < floor.classes:
        yield Objection("classes", f"sums of {len(summed)} classes; floor.classes = {floor.classes}")
    whole = all(count in (0, all_) for count, all_ in zip(counts, held.class_counts, strict=True))
    if not (whole or policy.allow.subsets):
        yield Objection("subset", "a sum over some of a class's examples")
    has_moment = sums.moment_DD is not None and bool(sums.moment_DD.any())
    if sums.sum_KD[sums.count_K == 0].any() or (has_moment and not summed):
        yield Objection("sum", "a sum without a count")
