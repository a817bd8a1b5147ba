"""fednc's Flower strategy: broadcasts model, frozen frame and class memory; folds updates and class sums.

One strategy for all methods; what differs is in the configuration. Runs over any Flower grid, in its own thread.
Flat memory: replies are folded as they arrive and dropped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fednc.common import exchange, faults, seeds
from fednc.common.config import RunConfig
from fednc.common.drift import DriftSums
from fednc.common.exchange import EVALUATE, HELLO, MEMORY, TRAIN, Instruction
from fednc.common.frame import Frame
from fednc.common.guide import Guide
from fednc.common.memory import ClassMemory, ClassSums
from fednc.common.stages import Stage
from fednc.common.stand_in import Pool
from fednc.common.tasks.base import Stats, Task, add_stats
from fednc.server import schedule
from fednc.server.central import fit_centrally
from fednc.server.checked import stats_in, sums_in
from fednc.server.events import EventLog
from fednc.server.fold import Fold, NormBound
from fednc.server.history import RoundRecord
from fednc.server.replies import Replies, to
from fednc.server.state import GlobalState


class FrameStrategy(Strategy):
    """Federated training towards a frozen frame, with a global class memory."""

    def __init__(self, run: RunConfig, task: Task, frame: Frame, state: GlobalState, events: EventLog) -> None:
        self.run, self.task, self.frame, self.state, self.events = run, task, frame, state, events
        self.replies = Replies(events)
        self.fold_s = 0.0  # spent in the last fold
        self.stage: Stage = task.stage(state.completed + 1)
        self._trained: list[int] = []  # whose updates are in the model of the round under way
        self._announced: dict[int, int] = {}  # examples that each node said it trains on
        self._record = RoundRecord(round=0)
        self._local = self._pool_of_sums("local")
        self._fold = Fold(state.folded)  # its memory serves every round of a stage

    # ---- Flower's interface --------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One content for all nodes of the round: model, frame, memory."""
        del config
        for node in self.replies.failed:
            self._announced.pop(node, None)  # ask again: it may have come back with other data
        self.replies.forget_failures()
        nodes = self.sample(server_round, grid)
        self._get_to_know(list(grid.get_node_ids()) if self.state.extra else nodes, server_round, grid)
        # A weight that was not announced could not be bounded; who holds nothing of the stage has none.
        nodes = [node for node in nodes if self._announced.get(node)]
        instruction = self._instruction(
            server_round, wants_sums=schedule.wants_local_sums(self.run, self.stage, server_round)
        )
        extra = exchange.extra_record(self.state.extra)
        content = exchange.instruction_content(instruction, arrays, self.guide(), extra)
        return to(grid, content, nodes, TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The exact weighted mean of the updates, folded as they arrive; None below quorum."""
        self._record, self.fold_s = RoundRecord(round=server_round, failures=self.replies.failures), 0.0
        fold, announced = self._fold, list(self._announced.values())
        bound = NormBound.of(self.run.rounds.max_update_norm, self.state.trainable)
        fold.start(self.state.folded, announced, bound)
        self._local, losses, self._trained = self._pool_of_sums("local"), [], []
        drift = DriftSums.zeros(*self._local.all.sum_KD.shape)
        for reply in self.replies.good(replies):
            node = reply.metadata.src_node_id
            loss = self.replies.take(reply, partial(self._fold_in, node=node, fold=fold, drift=drift))
            if loss is not None:
                losses.append(loss)
                self._trained.append(node)
        self._record.replies, self._record.examples = fold.updates, fold.weight
        if fold.updates < self.quorum:
            return None, None
        self._record.loss = sum(sorted(losses)) / fold.weight  # sorted: the same bits in any order of arrival
        if schedule.wants_local_sums(self.run, self.stage, server_round):
            self._record.drift = _finite(drift.value())
        if self.run.method.memory_model == "local":
            self._remember(server_round, self._local)
        self.state.advance(fold.mean(), share=fold.weight / sum(announced))
        return self.state.record, MetricRecord({"loss": self._record.loss, "examples": fold.weight})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Everybody evaluates the global model on what it holds out."""
        del config
        content = exchange.instruction_content(self._instruction(server_round), arrays, self.guide(evaluates=True))
        nodes = list(grid.get_node_ids())
        nodes += [node for node in self._trained if node not in nodes]  # just lost: the grid lets them come back
        return to(grid, content, nodes, EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Pooled metrics from additive statistics, and the client that fares worst."""
        del server_round
        pooled: Stats = {}
        worst: dict[str, Any] = {}
        for reply in self.replies.good(replies):
            metrics = self.replies.take(reply, lambda content: self._pool(content, pooled))
            if metrics and math.isfinite(metrics["accuracy"]):
                here = {"accuracy": metrics["accuracy"], "name": self.replies.name_of(reply.metadata.src_node_id)}
                worst = min(worst or here, here, key=lambda one: (one["accuracy"], one["name"]))
        if not pooled:
            return None
        metrics = self.task.metrics(pooled)
        self._record.pooled = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._record.worst_client = worst
        return MetricRecord(dict(self._record.pooled))

    def summary(self) -> None:
        """Say once what is about to run."""
        run, frame = self.run, self.frame
        self.events.emit(
            "start", f"{run.method.name} on {run.task.name}: {run.all_rounds} rounds, frame K={frame.vertices} "
            f"d={frame.dim} {frame.digest[:12]}, seed {run.seed}", method=run.method.name, frame=frame.digest,
            config=run.digest,
        )  # fmt: skip

    # ---- stages --------------------------------------------------------------------------------------------

    def enter(self, stage: Stage) -> None:
        """The state is narrowed to what the stage trains; what clients hold of it is not known yet."""
        self.stage, self._announced, self._fold = stage, {}, Fold(self.state.folded)

    def holders(self, grid: Grid) -> list[int]:
        """Nodes that hold examples of the stage's classes; asks those that have not said so yet."""
        nodes = sorted(grid.get_node_ids())
        self._get_to_know(nodes, self.stage.first, grid)
        return [node for node in nodes if self._announced.get(node)]

    def pool_new_classes(self, grid: Grid) -> None:
        """Class means of the stage's classes into the memory."""
        self._refresh_memory(self.stage.first, grid, self.run.rounds.deadline_s, self.holders(grid))

    def _fit(self, server_round: int, steps: int) -> float:
        """The server trains alone, on the class memory."""
        generator = seeds.generator(self.run.seed, "fit", server_round)
        return fit_centrally(self.task, self.state, self.guide_at(server_round), self.stage, steps, generator)

    # ---- one round -----------------------------------------------------------------------------------------

    def run_round(self, server_round: int, grid: Grid, *, evaluates: bool) -> RoundRecord | None:
        """Train, refresh the memory, evaluate. None when too few replies came; the state is then untouched."""
        started, timeout_s = time.monotonic(), self.run.rounds.deadline_s
        if self.task.fits_centrally(self.stage):
            self._record = RoundRecord(round=server_round)
            self._record.loss = _finite(self._fit(server_round, self.stage.train.epochs))
        elif not self._train(server_round, grid, timeout_s):
            return None
        if self._wants_global_memory(server_round, evaluates):
            nodes = sorted(grid.get_node_ids()) if self.task.takes_sessions else self._trained
            self._refresh_memory(server_round, grid, timeout_s, nodes)
            if self.task.settling_steps and self.stage.is_first:
                self._fit(server_round, self.task.settling_steps)
        if evaluates:
            self._evaluate(server_round, grid, timeout_s)
        self.state.completed = server_round
        self._record.seconds = time.monotonic() - started
        return self._record

    def _train(self, server_round: int, grid: Grid, timeout_s: float) -> bool:
        messages = self.configure_train(server_round, self.state.record, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages, timeout=timeout_s)
        model, _ = self.aggregate_train(server_round, replies)
        self._record.missing = list(getattr(replies, "missing", []))
        return model is not None

    def evaluate_early(self, grid: Grid) -> None:
        """Evaluate the round just completed although it was not its turn: the run ends with it."""
        server_round, timeout_s = self._record.round, self.run.rounds.deadline_s
        if self._wants_global_memory(server_round, True) and not self._wants_global_memory(server_round, False):
            self._refresh_memory(server_round, grid, timeout_s, self._trained)
        self._evaluate(server_round, grid, timeout_s)

    def _evaluate(self, server_round: int, grid: Grid, timeout_s: float) -> None:
        messages = self.configure_evaluate(server_round, self.state.record, ConfigRecord(), grid)
        self.aggregate_evaluate(server_round, grid.send_and_receive(messages, timeout=timeout_s))

    @property
    def quorum(self) -> int:
        """Replies without which a round does not count."""
        return self.stage.min_clients

    def sample(self, server_round: int, grid: Grid) -> list[int]:
        """The nodes of a round, drawn from (seed, round) alone. In a session all: few hold its classes."""
        nodes = sorted(grid.get_node_ids())
        count = self.run.rounds.clients_per_round if self.stage.is_first else 0
        if not count or count >= len(nodes):
            return nodes
        draw = random.Random(seeds.derive(self.run.seed, "sample", server_round))  # noqa: S311 - reproducible
        return sorted(draw.sample(nodes, count))

    def _get_to_know(self, nodes: list[int], server_round: int, grid: Grid) -> None:
        """Ask nodes we have not met how many examples they hold: the exact fold needs a bound on all weights."""
        strangers = [node for node in nodes if node not in self._announced]
        if not strangers:
            return
        content = exchange.instruction_content(self._instruction(server_round))
        for reply in self.replies.ask(grid, content, strangers, HELLO, server_round, self.run.rounds.deadline_s):
            examples = self.replies.take(reply, exchange.examples_of)
            if examples is not None:
                self._announced[reply.metadata.src_node_id] = examples

    def _refresh_memory(self, server_round: int, grid: Grid, timeout_s: float, nodes: Iterable[int]) -> None:
        """Class means of the new global model's features, exact: one forward pass at each client."""
        content = exchange.instruction_content(self._instruction(server_round), self.state.record)
        pool = self._pool_of_sums("global")
        for reply in self.replies.ask(grid, content, nodes, MEMORY, server_round, timeout_s):
            sums = self.replies.take(reply, self._checked_sums)
            if sums is not None:
                pool.add(sums, reply.metadata.src_node_id)
        self._remember(server_round, pool)

    def _remember(self, server_round: int, pool: Pool) -> None:
        method = self.run.method
        self.state.memories = self.state.memories.updated(
            pool, method.memory_momentum, warming_up=server_round <= method.warmup_rounds
        )

    # ---- replies -------------------------------------------------------------------------------------------

    def _fold_in(self, content: RecordDict, node: int, fold: Fold, drift: DriftSums) -> float:
        examples = exchange.examples_of(content)
        sums = self._checked_sums(content) if exchange.SUMS in content else None
        update, loss = exchange.update_of(content), exchange.loss_of(content)
        faults.at("server.fold")
        started = time.monotonic()
        fold.add(update, examples)
        self.fold_s += time.monotonic() - started
        if sums is not None:
            drift.add_client(sums)
            self._local.add(sums, node)
        return loss * examples

    def _checked_sums(self, content: RecordDict) -> ClassSums:
        return sums_in(content, self.task, self.stage)

    def _pool(self, content: RecordDict, pooled: Stats) -> dict[str, float] | None:
        stats = stats_in(content, self.task)
        if stats is None:
            return None
        metrics = self.task.metrics(stats)
        add_stats(pooled, stats)
        return metrics

    # ---- small parts ---------------------------------------------------------------------------------------

    @property
    def memory(self) -> ClassMemory:
        """What clients and read-out are given as the class memory."""
        return self.state.memories.under(self.run.method.memory_source, self.frame.etf_KD, self.run.seed)

    def guide_at(self, server_round: int) -> Guide:
        """The guide as the server's own evaluation and fit see it."""
        made = exchange.make_guide(self.run, self.frame, self.memory, server_round)
        return self.task.within_stage(made, server_round)

    def _pool_of_sums(self, model: str) -> Pool:
        moment = self.run.method.needs_moments(model, is_first=self.stage.is_first)
        return Pool(self.frame.vertices, self.task.memory_dim, self.run.seed, moment=moment)

    def _instruction(self, server_round: int, *, wants_sums: bool = False) -> Instruction:
        return Instruction.under(self.run, server_round, wants_sums=wants_sums)

    def guide(self, *, evaluates: bool = False) -> ArrayRecord:
        """Frame and memory as they travel now."""
        return exchange.guide_record(self.frame, self.memory, evaluates=evaluates)

    def evaluates(self, server_round: int) -> bool:
        """Whether this round ends with an evaluation."""
        return schedule.evaluates(self.run, self.stage, server_round)

    def _wants_global_memory(self, server_round: int, evaluating: bool) -> bool:
        sessions = self.task.takes_sessions
        return schedule.wants_global_memory(
            self.run, self.stage, server_round, evaluating=evaluating, takes_sessions=sessions
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
