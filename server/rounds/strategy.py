"""fednc's Flower strategy: sends out model, frozen frame and class memory; aggregates updates and class sums.

One strategy serves all methods; they differ in the configuration. Runs over any Flower grid, in its own thread.
Memory does not grow with the number of clients: each reply is added to the sums as it arrives, then dropped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fednc.common import fault_injection, seeds
from fednc.common.config.run import RunConfig
from fednc.common.errors import DivergedError, ProtocolError, StaleError
from fednc.common.learning.class_drift import DriftSums
from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.frame import Frame
from fednc.common.learning.memory_controls import Pool
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task, add_stats
from fednc.common.tasks.blocks import Traffic
from fednc.common.tasks.classifier import classifier
from fednc.common.tasks.incremental import Incremental
from fednc.common.tasks.metrics import EXAMPLES, Stats
from fednc.common.tasks.round_guide import guide_at
from fednc.common.tasks.stages import Stage
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import EVALUATE, MEMORY, TRAIN, Instruction
from fednc.server.aggregation.mean import Fold, NormBound
from fednc.server.rounds import schedule
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.drift_watch import DriftWatch
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.participants import Participants
from fednc.server.rounds.replies import Content, Replies, messages_to
from fednc.server.rounds.reply_contents import is_named, of_fewer, stats_in, sums_in
from fednc.server.rounds.round_mean import RoundMean
from fednc.server.rounds.server_training import fit_centrally
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import DiskProblem, MemoryIsOld, RunStarted
from fednc.server.storage.history import RoundRecord, spread_of


class FrameStrategy(Strategy):
    """Federated training towards a frozen frame, with a global class memory."""

    def __init__(
        self,
        run: RunConfig,
        task: Task,
        frame: Frame,
        state: GlobalState,
        events: EventLog,
        around: Surroundings | None = None,
    ) -> None:
        around = around or Surroundings()
        self.run, self.task, self.frame, self.state, self.events = run, task, frame, state, events
        self.replies = Replies(events, around.name_of, around.reject, around.reject_values)
        self.clients = Participants(run.rounds, self.replies, events, around.declared)
        self.client_metrics = around.client_metrics
        self.drift_watch = DriftWatch(run.evaluate.drift_rate, events, around.name_of)
        self.fold_s = 0.0  # seconds spent on aggregation in the last round
        self.stage: Stage = task.stage(state.completed + 1)
        self._trained: list[int] = []  # nodes whose updates are in the model of the current round
        self._weights: dict[int, int] = {}  # examples that each node of the current round counts for
        self._counted: dict[int, int] = {}  # weight of each update that came
        self._held_out: dict[int, int] = {}  # held-out examples that each node counts for
        self._record = RoundRecord(round=0)
        self._warned_of_old_memory = False
        self._local = self._pool_of_sums("local")
        self._fold = Fold(
            state.folded, state.extra, task.combining
        )  # its memory is reused in all rounds of a stage

    # ---- Flower's interface --------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages to the nodes of the round, all with the same content: model, frame, memory."""
        del config
        self.clients.forget(self.replies.failed)  # they may have come back with other data
        self.replies.forget_failures()
        nodes = self.sample(server_round, grid)
        self.get_to_know(
            list(grid.get_node_ids()) if self.state.methods.needs_every_client else nodes, server_round, grid
        )
        # Only announced examples count: any other weight would have no bound.
        self._weights = self.clients.examples(nodes)
        instruction = self._instruction(
            server_round, wants_sums=schedule.wants_local_sums(self.run, self.stage, server_round)
        )
        extra = messages.extra_record(self.state.extra)
        content = self.to_each(instruction, arrays, self.guide(), extra)
        self.replies.begin()
        return messages_to(grid, content, list(self._weights), TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The exact weighted mean of the updates, computed as they arrive; None below quorum.

        Raises:
            DivergedError: most clients sent values that are not finite.
        """
        self._record, self.fold_s = RoundRecord(round=server_round, failures=self.replies.failures), 0.0
        bound = NormBound.of(self.run.rounds.max_update_norm, self.state.trainable)
        self._fold.start(self.state.folded, self._weights.values(), bound)
        mean = RoundMean(self._fold, self.run.rounds, len(self._weights), self.events, self.replies.name_of)
        losses: dict[int, float] = {}
        self._local, self._trained, self._counted = self._pool_of_sums("local"), [], {}
        drift = DriftSums.zeros(*self._local.all.sum_KD.shape)
        for reply in self.replies.good(replies):
            node = reply.metadata.src_node_id
            loss = self.replies.take(reply, partial(self._fold_in, node=node, mean=mean, drift=drift))
            if loss is not None:
                losses[node] = loss
        self._record.missing = [self.replies.name_of(n) for n in self._weights if n not in self.replies.answered]
        self._end_exchange(server_round, self._weights)
        if len(losses) < self.quorum or not any(self._weights[node] for node in losses):
            return None, None
        record, left_out = mean.finish()
        self._trained = [node for node in losses if self._weights[node] and node not in left_out]
        # Also those left out: nothing tells a lying node that it was found.
        self.state.accept(server_round, losses)
        self._record.replies, self._record.examples = self._fold.updates, self._fold.weight
        # Sorted, so that the order of arrival does not change the bits.
        self._record.loss = sum(sorted(losses[node] for node in self._trained)) / self._fold.weight
        if schedule.wants_local_sums(self.run, self.stage, server_round):
            self._record.drift = _finite(drift.value())
        if self.run.method.memory_model == "local":
            self._remember(server_round, self._local)
        self.state.advance(
            record,
            share=self._fold.weight / self.clients.examples_of_all,
            examples=[self._counted[node] for node in self._trained],
            train=self.stage.train,
            stretch=self.task.stretch(self._fold.alike),
        )
        return self.state.record, MetricRecord({"loss": self._record.loss, "examples": self._fold.weight})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages to all nodes: evaluate the global model on your held-out examples."""
        del config
        content = self.to_each(self._instruction(server_round), arrays, self.guide(evaluates=True))
        nodes = list(grid.get_node_ids())
        nodes += [node for node in self._trained if node not in nodes]  # just lost; they may still come back
        nodes = self.clients.present(server_round, nodes)
        self.get_to_know(nodes, server_round, grid)
        self._held_out = self.clients.held_out(nodes)
        self.replies.begin()
        return messages_to(grid, content, list(self._held_out), EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Metrics pooled from additive statistics, and the client with the worst primary metric."""
        pooled: Stats = {}
        worst: dict[str, Any] = {}
        values: list[float] = []
        by_name: dict[str, dict[str, float]] = {}
        primary = self.task.primary.name
        for reply in self.replies.good(replies):
            node = reply.metadata.src_node_id
            metrics = self.replies.take(reply, partial(self._pool, node=node, pooled=pooled))
            if not metrics:
                continue
            values.append(metrics[primary])
            if not is_named(reply.content):
                continue
            name = self.replies.name_of(node)
            by_name[name] = {key: metrics[key] for key in self._listed if math.isfinite(metrics[key])}
            if math.isfinite(metrics[primary]):
                here = {primary: metrics[primary], "name": name}
                worst = min(worst or here, here, key=self._how_good)
        self._end_exchange(server_round, self._held_out)
        if not pooled:
            return None
        self._record.spread = spread_of(values)
        self._note_clients(server_round, by_name)
        metrics = self.task.measure(pooled)
        self._record.pooled = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._record.worst_client = worst
        return MetricRecord(dict(self._record.pooled))

    @property
    def _listed(self) -> list[str]:
        """The metrics that are listed for each client."""
        return [EXAMPLES, *(metric.name for metric in self.task.measured_by)]

    def _note_clients(self, server_round: int, by_name: Mapping[str, Mapping[str, float]]) -> None:
        """A full disk must not cost the round: the file is for people, and the next checkpoint waits for space."""
        try:
            self.client_metrics.add(server_round, by_name)
        except OSError as e:
            self.events.emit(DiskProblem(text=f"metrics of round {server_round} by client: {e.strerror}"))

    def _how_good(self, client: dict[str, Any]) -> tuple[float, str]:
        """A sort key: lowest for the client with the worst primary metric, ties by name."""
        value = client[self.task.primary.name]
        return (value if self.task.primary.higher_is_better else -value), client["name"]

    def summary(self, traffic: Traffic | None = None) -> None:
        """Emit the event that describes the run; `traffic` is what its model costs on the link, if known."""
        run, frame = self.run, self.frame
        shown = f" frame K={frame.vertices} d={frame.dim} {frame.digest[:12]}," if frame.vertices else ""
        text = f"{run.method.name} on {run.task.name}: {run.all_rounds} rounds,{shown} seed {run.seed}"
        if traffic and traffic.each_round != traffic.once:
            text += f"; {traffic.text}"
        started = RunStarted(
            text=text,
            method=run.method.name,
            frame=frame.digest,
            config=run.digest,
            metric=self.task.primary.to_json(),
        )
        self.events.emit(started)

    # ---- stages --------------------------------------------------------------------------------------------

    def enter(self, stage: Stage, run: RunConfig, task: Task) -> None:
        """Begin a stage. The state was narrowed to its tensors; clients have not yet announced their examples.

        Args:
            run: the run file, in which an operator may have named the stage's classes in the meantime.
            task: built from it.
        """
        self.run, self.task = run, task
        self.stage = stage
        self._fold = Fold(self.state.folded, self.state.extra, task.combining)
        self.clients.enter(is_first=stage.is_first)

    def holders(self, grid: Grid) -> list[int]:
        """Nodes that hold examples of the stage's classes. Asks the nodes that have not announced them yet."""
        nodes = sorted(grid.get_node_ids())
        self.get_to_know(nodes, self.stage.first, grid)
        return list(self.clients.examples(nodes))

    def pool_new_classes(self, grid: Grid) -> None:
        """Take class means of the stage's classes into the memory, if the task keeps one."""
        if not self.task.keeps_memory:
            return
        self._refresh_memory(self.stage.first, grid, self.run.rounds.deadline_s, self.holders(grid))

    def _fit(self, server_round: int, steps: int) -> float:
        """Train on the server, on the class memory; return the loss."""
        generator = seeds.generator(self.run.seed, "fit", server_round)
        assert isinstance(self.task, Incremental)
        return fit_centrally(self.task, self.state, self.guide_at(server_round), self.stage, steps, generator)

    # ---- one round -----------------------------------------------------------------------------------------

    def run_round(self, server_round: int, grid: Grid, *, evaluates: bool) -> RoundRecord | None:
        """Train, refresh the memory, evaluate. None if too few replies came; the state is then unchanged.

        Raises:
            DivergedError: most clients sent values that are not finite; the state is reset to the round before.
        """
        before = self.state.snapshot()
        try:
            return self._round(server_round, grid, evaluates=evaluates)
        except DivergedError:
            self.state.go_back_to(before)
            raise

    def _round(self, server_round: int, grid: Grid, *, evaluates: bool) -> RoundRecord | None:
        started, timeout_s = time.monotonic(), self.run.rounds.deadline_s
        task = self.task if isinstance(self.task, Incremental) else None
        if task and task.fits_centrally(self.stage):
            self._record = RoundRecord(round=server_round)
            self._record.loss = _finite(self._fit(server_round, self.stage.train.epochs))
        elif not self.run.train.epochs:
            if not self._sum_features(server_round, grid, timeout_s):
                return None
        elif not self._train(server_round, grid, timeout_s):
            return None
        if self.run.train.epochs and self._wants_global_memory(server_round, evaluates):
            self._renew_memory(server_round, grid, timeout_s)
            if task and task.settling_steps and self.stage.is_first:
                self._fit(server_round, task.settling_steps)
        if evaluates:
            self._evaluate(server_round, grid, timeout_s)
        self.state.complete(server_round)
        self._record.seconds = time.monotonic() - started
        return self._record

    def _train(self, server_round: int, grid: Grid, timeout_s: float) -> bool:
        sent = self.configure_train(server_round, self.state.record, ConfigRecord(), grid)
        replies = grid.send_and_receive(sent, timeout=timeout_s)
        model, _ = self.aggregate_train(server_round, replies)
        return model is not None

    def evaluate_early(self, grid: Grid) -> None:
        """Evaluate the round just completed ahead of schedule, because the run ends with it."""
        server_round, timeout_s = self._record.round, self.run.rounds.deadline_s
        if (
            self.run.train.epochs
            and self._wants_global_memory(server_round, True)
            and not self._wants_global_memory(server_round, False)
        ):
            self._renew_memory(server_round, grid, timeout_s)
        self._evaluate(server_round, grid, timeout_s)

    def _evaluate(self, server_round: int, grid: Grid, timeout_s: float) -> None:
        sent = self.configure_evaluate(server_round, self.state.record, ConfigRecord(), grid)
        self.aggregate_evaluate(server_round, grid.send_and_receive(sent, timeout=timeout_s))

    @property
    def quorum(self) -> int:
        """The fewest replies with which a round counts."""
        return self.stage.min_clients

    def sample(self, server_round: int, grid: Grid) -> list[int]:
        """The nodes of a round, drawn from (seed, round) alone. In a session all, because few hold its classes."""
        here = sorted(grid.get_node_ids())
        nodes = self.clients.present(server_round, here)
        if len(nodes) < self.quorum:
            nodes = here
        count = self.run.rounds.clients_per_round if self.stage.is_first else 0
        if not count or count >= len(nodes):
            return nodes
        draw = random.Random(seeds.derive(self.run.seed, "sample", server_round))  # noqa: S311 - reproducible
        return sorted(draw.sample(nodes, count))

    def get_to_know(self, nodes: Iterable[int], server_round: int, grid: Grid) -> None:
        """Ask those of `nodes` that have not announced what they hold."""

        def question() -> RecordDict:
            return messages.instruction_content(self._instruction(server_round))

        known, each = self.task.label_space, self.task.members_per_example
        self.clients.get_to_know(nodes, server_round, grid, question, known, each)

    def _end_exchange(self, server_round: int, asked: Collection[int]) -> None:
        """Raises DivergedError if most answers have values that are not finite."""
        self.clients.note_answers(server_round, asked)
        if self.replies.settle():
            train, completed = self.run.train, self.state.completed
            kept = f"Kept: the model of round {completed}" if completed else "No round was completed"
            raise DivergedError(
                f"the model diverged in round {server_round}: most clients sent values that are not finite or far "
                f"out of bounds. Lower train.lr ({train.lr:g}) or set train.clip_norm ({train.clip_norm:g}). "
                f"{kept}"
            )

    def _sum_features(self, server_round: int, grid: Grid, timeout_s: float) -> bool:
        """The whole round if nothing is trained: take class sums into the memory. False below quorum."""
        self.clients.forget(self.replies.failed)
        self.replies.forget_failures()
        self._record, self.fold_s = RoundRecord(round=server_round, failures=self.replies.failures), 0.0
        before = self.state.memories
        wants_all = self.run.rounds.memory_clients == "all"
        asked = sorted(grid.get_node_ids()) if wants_all else self.sample(server_round, grid)
        summed = self._refresh_memory(server_round, grid, timeout_s, asked)
        if len(summed) < self.quorum:
            self.state.memories = before
            return False
        self._trained = list(summed)
        self._record.missing = [self.replies.name_of(node) for node in asked if node not in summed]
        self._record.replies, self._record.examples = len(summed), sum(summed.values())
        return True

    def _renew_memory(self, server_round: int, grid: Grid, timeout_s: float) -> None:
        """Make the memory of the trained model: of the clients that trained it, or of all."""
        here = sorted(grid.get_node_ids())
        wants_all = self.task.takes_sessions or self.run.rounds.memory_clients == "all"
        self._refresh_memory(server_round, grid, timeout_s, here if wants_all else self._trained)
        if not wants_all:
            self._warn_of_old_memory(server_round, here)

    def _warn_of_old_memory(self, server_round: int, here: Iterable[int]) -> None:
        """Say once that classes of clients outside the round are remembered as an earlier model saw them."""
        method, outside = self.run.method, {*here} - {*self._trained}
        if self._warned_of_old_memory or not outside or not (method.reads_memory or method.fits_projection):
            return
        old = self._classes_of(outside) - self._classes_of(self._trained)
        names = [name for number, name in enumerate(self.task.class_names) if number in old]
        if names:
            self._warned_of_old_memory = True
            text = (
                f"no client of round {server_round} has {', '.join(names)[:200]}, but others do: the memory of "
                'these classes is old, and tests read it. Set rounds.memory_clients = "all" (docs/methods.md)'
            )
            self.events.emit(MemoryIsOld(text=text, round=server_round, classes=tuple(names)))

    def _classes_of(self, nodes: Iterable[int]) -> set[int]:
        """Those of which one of the nodes has announced examples."""
        counts = (self.clients.holding(node).count_K for node in nodes)
        return {number for count_K in counts for number, count in enumerate(count_K) if count}

    def _refresh_memory(
        self, server_round: int, grid: Grid, timeout_s: float, nodes: Iterable[int]
    ) -> dict[int, int]:
        """Collect class means of the new global model's features: exact, with one forward pass on each client.

        Returns the examples that each node's sums count for.
        """
        nodes = self.clients.present(server_round, nodes)
        self.get_to_know(nodes, server_round, grid)
        counted = {node: count for node, count in self.clients.examples(nodes).items() if count}
        content = self.to_each(self._instruction(server_round), self.state.record)
        pool, summed = self._pool_of_sums("global"), {}
        with self.drift_watch.exchange(server_round, pool.all, self.task.class_names) as watched:
            for reply in self.replies.ask(grid, content, list(counted), MEMORY, server_round, timeout_s):
                node = reply.metadata.src_node_id
                take = partial(self._checked_sums, node=node, counted=counted, like=pool.all)
                sums = self.replies.take(reply, take)
                if sums is not None:
                    pool.add(sums, node)
                    watched.add(sums, node, is_named=is_named(reply.content))
                    summed[node] = counted[node]
            self._end_exchange(server_round, counted)
        self._remember(server_round, pool)
        return summed

    def _remember(self, server_round: int, pool: Pool) -> None:
        method = self.run.method
        self.state.remember(
            pool,
            method.memory_momentum,
            warming_up=server_round <= method.warmup_rounds,
            ridge=method.ridge if method.readout_needs.needs_ridge else 0.0,
        )
        if method.fits_projection:
            fitted = classifier(self.task).from_memory(self.memory, self.frame.etf_KD)
            self.state.put(arrays.to_record(fitted))

    # ---- replies -------------------------------------------------------------------------------------------

    def _fold_in(self, content: RecordDict, node: int, mean: RoundMean, drift: DriftSums) -> float:
        weight = min(self._examples_in(content, node), self._weights[node])
        sums = None
        if messages.SUMS in content:
            sums = self._checked_sums(content, node, self._weights, self._local.all)
        update, loss = messages.update_of(content), messages.loss_of(content)
        owned = messages.owned_of(content, self._fold.by_owner, counted=weight) if self._fold.by_owner else None
        if not weight:
            return 0.0
        fault_injection.at("server.fold")
        started = time.monotonic()
        mean.add(node, update, weight, owned)
        self.fold_s += time.monotonic() - started
        self._counted[node] = weight
        if sums is not None:
            drift.add_client(sums)
            self._local.add(sums, node)
        return loss * weight

    def _examples_in(self, content: RecordDict, node: int) -> int:
        examples, announced = messages.examples_of(content), self.clients.holding(node).examples
        if not 1 <= examples <= announced:
            problem = f"declares {examples} examples, but {announced} were announced"
            raise StaleError(problem) if self.clients.has_changed(node) else ProtocolError(problem)
        return examples

    def _checked_sums(
        self, content: RecordDict, node: int, counted: Mapping[int, int], like: ClassSums
    ) -> ClassSums:
        """The class sums of a reply, scaled to the examples that the node counts for."""
        holding = self.clients.holding(node)
        try:
            sums = sums_in(content, self.task, self.stage, holding.count_K, like)
        except ProtocolError as e:
            if self.clients.has_changed(node):
                raise StaleError(str(e)) from e
            raise
        return sums.of_fewer(counted[node], holding.examples)

    def _pool(self, content: RecordDict, node: int, pooled: Stats) -> dict[str, float] | None:
        claimed = self.clients.holding(node).held_out
        stats = stats_in(content, self.task, claimed)
        if stats is None:
            return None
        metrics = self.task.measure(stats)
        add_stats(pooled, of_fewer(stats, self._held_out[node], claimed))
        return metrics

    # ---- small parts ---------------------------------------------------------------------------------------

    @property
    def memory(self) -> ClassMemory:
        """The class memory that clients and read-out use (or its stand-in, see `method.memory_source`)."""
        return self.state.memories.under(self.run.method.memory_source, self.frame.etf_KD, self.run.seed)

    def guide_at(self, server_round: int) -> Guide:
        """The guide for the server's own evaluation and training."""
        return guide_at(self.task, self.frame.etf_KD, self.memory, server_round)

    def _pool_of_sums(self, model: str) -> Pool:
        moment = self.run.method.needs_moments(model, is_first=self.stage.is_first)
        exact = not self.run.train.epochs
        return Pool(self.frame.vertices, self.task.memory_dim, self.run.seed, moment=moment, exact=exact)

    def _instruction(self, server_round: int, *, wants_sums: bool = False) -> Instruction:
        return Instruction.under(self.run, server_round, wants_sums=wants_sums)

    def to_each(self, instruction: Instruction, *records: ArrayRecord | None) -> Content:
        """The content for each node: it differs only in the last round that counts the node's reply."""
        accepted = self.state.accepted

        @cache
        def content(last: int | None) -> RecordDict:
            return messages.instruction_content(replace(instruction, accepted=last), *records)

        return lambda node: content(None if accepted is None else accepted.get(node, 0))

    def guide(self, *, evaluates: bool = False) -> ArrayRecord:
        """Frame and memory, encoded for sending."""
        return messages.guide_record(self.frame, self.memory, evaluates=evaluates)

    def evaluates(self, server_round: int) -> bool:
        """Whether this round ends with an evaluation."""
        return schedule.evaluates(self.run, self.stage, server_round)

    def _wants_global_memory(self, server_round: int, evaluating: bool) -> bool:
        sessions = self.task.takes_sessions
        return self.task.keeps_memory and schedule.wants_global_memory(
            self.run, self.stage, server_round, evaluating=evaluating, takes_sessions=sessions
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
