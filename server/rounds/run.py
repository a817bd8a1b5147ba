"""One run: builds task, frame, model and strategy from the run file and drives the rounds over any Flower grid.

Called by `server/main.py` over our link, by `server/flower_app.py` on stock Flower, and by `bench/` in one
process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from flwr.serverapp import Grid

from fednc.common import seeds
from fednc.common.config.run import RunConfig
from fednc.common.errors import QuorumError
from fednc.common.initialise.probe import Layout
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import Frame
from fednc.common.learning.memory_controls import Memories
from fednc.common.tasks import discovery as tasks
from fednc.common.tasks.api import Task
from fednc.common.tasks.class_registry import ClassRegistry
from fednc.common.tasks.incremental import Incremental
from fednc.common.tasks.stages import Stage, with_names
from fednc.common.wire import arrays
from fednc.server.rounds.class_sessions import Sessions
from fednc.server.rounds.context import Surroundings, Waiting
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.initialisation import Conversation, draw_with_gain, initialise, scaled, speaks
from fednc.server.rounds.method_steps import MethodSteps
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.rounds.test_evaluation import CentralEvaluation
from fednc.server.rounds.waiting import save_patiently
from fednc.server.storage.changed_run_file import Changes
from fednc.server.storage.checkpoint import Checkpoint
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import DataNote, LastRoundEvaluated, RoundCompleted, RunResumed, RunStopped
from fednc.server.storage.history import History, RoundRecord

_TRIES = 3  # of one round below quorum
CPU = torch.device("cpu")


@dataclass(kw_only=True)
class RunResult:
    """What a finished run leaves behind."""

    run: RunConfig
    task: Task
    frame: Frame
    state: GlobalState
    history: History
    evaluation: CentralEvaluation | None
    class_names: tuple[str, ...]  # so far


class FederatedRun:
    """One run from its first to its last round."""

    def __init__(self, run: RunConfig, events: EventLog, device: torch.device = CPU) -> None:
        """Load everything the server needs.

        Args:
            run: the run file.
            events: hears what happens.
            device: where the server's own test data are evaluated.

        Raises:
            ConfigError, DataError: the task or the test data cannot be used.
        """
        self.run, self._events, self._around = run, events, Surroundings()
        self._control, self._device = self._around.control, device
        self._digest, self._config = run.digest, run.decisive()  # names that operators give are no part of it
        self.task = tasks.get(run)
        self.frame = self.task.frame(seeds.derive(run.seed, "frame"))
        torch.manual_seed(seeds.derive(run.seed, "model"))
        self._model = model = self.task.build_model()
        draw_with_gain(model, run.init.gain)
        self.layout = Layout.of(model, self.task.shared_keys(model)) if speaks(run) else None
        self._initialised: dict[str, Any] = {}
        self._changed: Changes = {}  # by the run file, since the checkpoint that the run goes on from
        self._entered: Stage | None = None
        self._opened = 0  # the session whose memory has been pooled
        self._good: GlobalState | None = None  # after the last round whose loss had not exploded
        shared = model.state_dict()
        keys = self.task.shared_keys(model)
        steps = MethodSteps.of(run.method.parts, model, keys)
        self.state = GlobalState(
            model={key: shared[key].clone() for key in keys},
            memories=Memories.all_from(ClassMemory.empty(self.frame.vertices, self.task.memory_dim)),
            methods=steps,
            extra=steps.beside({name: p.detach() for name, p in model.named_parameters() if name in keys}),
            kept=steps.kept({key: shared[key] for key in keys if key in steps.stepped}),
        )
        self.history = History(primary=self.task.primary)
        self.strategy = FrameStrategy(run, self.task, self.frame, self.state, events)
        self.evaluation = self._central_evaluation(model)

    def _central_evaluation(self, model: torch.nn.Module) -> CentralEvaluation | None:
        if not self.run.evaluate.test:
            return None
        data = self.task.load_test(self.run.evaluate.test)
        for note in data.notes:
            self._events.emit(DataNote(text=f"test data: {note}"))
        return CentralEvaluation(self.task, model, data, self.run.evaluate.batch, self._device)

    def execute(self, grid: Grid, around: Surroundings | None = None) -> RunResult:
        """Run all rounds over any grid.

        Raises:
            QuorumError: too few clients came, or too few answered a round three times in a row.
        """
        if around:
            self._around = around
            self.strategy.replies.name_of, self.strategy.replies.reject = around.name_of, around.reject
            self.strategy.clients.declared = around.declared
        self._control = self._around.control
        self._control.primary = self.history.primary
        self.strategy.summary()
        self._waiting = Waiting(self.run.rounds, grid, self._around, self._events)
        if self._around.returning:
            self._waiting.for_returning()
        self._sessions = Sessions(self.strategy, self._control, self._events, self.run.rounds.wait_s)
        for server_round in range(self.state.completed + 1, self.run.all_rounds + 1):
            begins = self._enter(server_round, grid) and self._initialise(server_round, grid)
            if not (begins and self._one_round(server_round, grid)):
                self._stop_before(server_round, grid)
                break
        return self._result(self.state)

    @property
    def last_good(self) -> RunResult | None:
        """What a run that ends too early leaves behind: the model of its last good round; None without one."""
        return None if self._good is None else self._result(self._good)

    def _result(self, state: GlobalState) -> RunResult:
        return RunResult(
            run=self.run,
            task=self.task,
            frame=self.frame,
            state=state,
            history=self.history,
            evaluation=self.evaluation,
            class_names=self.registry.names,
        )

    def _enter(self, server_round: int, grid: Grid) -> bool:
        """Pass into the stage of a round; False when an operator stops the run instead."""
        stage = self.task.stage(server_round)
        if stage == self._entered:
            return True
        begins = not stage.is_first and server_round == stage.first and self._opened != stage.number
        if begins and stage.waits:
            names = self._sessions.wait_for_operator(stage)
            if names is None:
                return False
            stage = self._name(stage, names)
        self._narrow(stage)
        if begins:
            if not (self._waiting.for_clients(stage.min_clients) and self._sessions.open(stage, grid)):
                return False
            self._opened = stage.number
            self._save()
        self._entered = stage
        return True

    def _initialise(self, server_round: int, grid: Grid) -> bool:
        """What [init] asks for before round 1; False when an operator stops the run instead."""
        if self.layout is None or server_round > 1:
            return True
        strategy = self.strategy
        if not self._waiting.for_clients(strategy.quorum):
            return False
        clients = Conversation(
            self.run,
            self.layout,
            self.state.record,
            strategy.guide(),
            strategy.replies,
            grid,
            strategy.sample(server_round, grid),
            strategy.quorum,
        )
        scale_P, self._initialised = initialise(clients, self._events)
        self.state.replace_model(arrays.to_record(scaled(self.state.model, self.layout, scale_P)))
        return True

    def _name(self, stage: Stage, names: tuple[str, ...]) -> Stage:
        """The stage as it is when its classes have these names, which the run file may have left open."""
        if names != self.run.sessions[stage.number - 1].classes:
            self._adopt(with_names(self.run, stage.number, names))
        return self.task.stages[stage.number]

    def _adopt(self, run: RunConfig) -> None:
        """Go on with `run`, in which classes have names that they had not before."""
        self.run, self.task = run, tasks.get(run)
        self.strategy.run, self.strategy.task = self.run, self.task
        self.evaluation = self._central_evaluation(self._model)

    def _narrow(self, stage: Stage) -> None:
        self.state.narrow(self.task.trained_keys(self._model, stage))
        self.strategy.enter(stage)
        self._control.session, self._control.class_names = stage.number, self.registry.names
        self._around.agree(self.state)

    def _stop_before(self, server_round: int, grid: Grid) -> None:
        """An operator ends the run: its last round is evaluated, as every run's is."""
        self._events.emit(RunStopped(text=f"stopped before round {server_round}", round=server_round))
        last = self._control.last
        primary = self.history.primary
        if last and last.value_of(primary) is None and not self._control.over:
            self.strategy.evaluate_early(grid)
            self._test(last)
            value = last.value_of(primary)
            shown = "unknown" if value is None else primary.show(value)
            text = f"round {last.round}: {primary.name} {shown}"
            self._events.emit(LastRoundEvaluated(text=text, record=last))

    def _test(self, record: RoundRecord) -> None:
        if self.evaluation:
            metrics = self.evaluation(self.state.model, self.strategy.guide_at(record.round))
            record.test = {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _end_stage(self, record: RoundRecord) -> None:
        """What is told of a session when its last round is over."""
        stage = self.strategy.stage
        if self.task.takes_sessions and record.round == stage.last:
            record.session = stage.number
            self._model.load_state_dict(self.state.model, strict=False)
            assert isinstance(self.task, Incremental)
            record.memory_cosines = self.task.memory_cosines(self._model, self.strategy.guide_at(record.round))
            if stage.is_first:
                self._sessions.warn(stage)

    def _one_round(self, server_round: int, grid: Grid) -> bool:
        """Whether it took place: not when an operator stops the run first."""
        self._control.round = server_round
        evaluates = self.strategy.evaluates(server_round)
        for _ in range(_TRIES):
            if not self._waiting.for_clients(self.strategy.quorum):
                return False
            up, down = self._around.traffic()
            record = self.strategy.run_round(server_round, grid, evaluates=evaluates)
            if record is not None:
                break
        else:
            raise _no_quorum(self.strategy, server_round, _TRIES)
        if self._control.over:  # cut off in the middle: half a round must not stand as one
            return False
        if evaluates:
            self._test(record)
        self._end_stage(record)
        now_up, now_down = self._around.traffic()
        record.bytes_up, record.bytes_down = now_up - up, now_down - down
        record.init, self._initialised = self._initialised, {}
        record.changed, self._changed = self._changed, {}
        self.history.rounds.append(record)
        if not self.history.has_exploded:
            self._good = self.state.snapshot()
        self._save()
        self._control.complete(record, self.strategy.fold_s)
        self._say(record)
        return True

    def _save(self) -> None:
        """No round begins before the last one is safe. Raises RunFailedError."""
        if self._around.checkpoints:
            save_patiently(
                self._around.checkpoints, self._checkpoint(), self.run.rounds.wait_s, self._control, self._events
            )

    def _checkpoint(self) -> Checkpoint:
        bytes_up, bytes_down = self._around.traffic()
        tensors = {
            **{f"model.{key}": value for key, value in self.state.model.items()},
            **self.state.memories.to_tensors(self.run.method.memory_source),
            **{f"extra.{key}": value for key, value in self.state.extra.items()},
            **{f"method.{key}": value for key, value in self.state.kept.items()},
            "frame.etf_KD": self.frame.etf_KD,
        }
        return Checkpoint(
            round=self.state.completed,
            config_sha256=self._digest,
            config=self._config,
            tensors=tensors,
            history=self.history.to_json(),
            parts=self._around.parts(),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            classes=self.registry.to_json() if self.run.sessions else None,
            opened=self._opened if self.task.stage(self.state.completed).number < self._opened else 0,
        )

    @property
    def registry(self) -> ClassRegistry:
        """The classes so far."""
        return self.task.registry.first(self.strategy.stage.number)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on after the checkpoint's round. Raises ProtocolError where its frame is not one."""
        if self.frame.vertices:
            self.frame = Frame.from_tensor(checkpoint.tensors["frame.etf_KD"], self.frame.seed)
        model = checkpoint.under("model.")  # safetensors sorts names; the model's own order is part of it
        self.state = GlobalState(
            model={key: model[key] for key in self.state.model},
            memories=Memories.from_tensors(checkpoint.tensors),
            methods=self.state.methods,
            extra=checkpoint.under("extra."),
            kept=checkpoint.under("method."),
            completed=checkpoint.round,
        )
        self._opened, self._changed = checkpoint.opened, checkpoint.changed
        self.history = History.from_json(checkpoint.history, self.task.primary)
        self._good = self.state.snapshot()
        if checkpoint.classes:
            self._recall(ClassRegistry.from_json(checkpoint.classes))
        self.strategy = FrameStrategy(self.run, self.task, self.frame, self.state, self._events)
        self._events.emit(RunResumed(text=f"going on after round {checkpoint.round}", round=checkpoint.round))

    def _recall(self, registry: ClassRegistry) -> None:
        """Give classes the names they had. Raises ConfigError: the run file has others in their places."""
        for number, names in enumerate(registry.groups[1:], start=1):
            if not self.run.sessions[number - 1].classes:
                self._adopt(with_names(self.run, number, names))
        self.task.registry.check_continues(registry)

    def _say(self, record: RoundRecord) -> None:
        primary, value = self.history.primary, record.value_of(self.history.primary)
        shown = "" if value is None else f", {primary.name} {primary.show(value)}"
        loss = "" if record.loss is None else f", loss {record.loss:.3f}"
        held = record.pooled.get(primary.name)
        worst = record.worst_client
        clients = "" if held is None else f", held out {primary.show(held)}"
        clients += f" (worst {worst['name']} {primary.show(worst[primary.name])})" if worst else ""
        text = (
            f"round {record.round}/{self.run.all_rounds}: {record.replies} replies{loss}{shown}"
            f"{clients} ({record.seconds:.1f} s)"
        )
        self._events.emit(RoundCompleted(text=text, record=record, fold_s=self.strategy.fold_s))


def _no_quorum(strategy: FrameStrategy, server_round: int, tries: int) -> QuorumError:
    return QuorumError(
        f"round {server_round} got fewer than {strategy.quorum} replies {tries} times in a row "
        f"({strategy.replies.reasons}). "
        "Mend the clients, or lower rounds.min_clients, or raise rounds.deadline_s."
    )
