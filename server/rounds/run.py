"""One run: builds task, frame, model and strategy from the run file, and runs the rounds over any Flower grid.

Called by `server/main.py` over our link, by `server/flower_app.py` on stock Flower, and by `bench/` in a single
process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from fednc.common import fault_injection, seeds
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, DataError, QuorumError
from fednc.common.initialise.probe import Layout
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import Frame
from fednc.common.learning.memory_controls import Memories
from fednc.common.methods import registry
from fednc.common.tasks import discovery, initial_weights
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Task
from fednc.common.tasks.blocks import Traffic
from fednc.common.tasks.class_registry import ClassRegistry
from fednc.common.tasks.incremental import Incremental
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.probe import check_candidates, section_of, with_pick
from fednc.common.tasks.stages import Stage, with_names
from fednc.common.tasks.temperature import is_calibrated
from fednc.common.wire import arrays
from fednc.server.rounds.after_rounds import Afterwards, ask_for_personal_models, fit_temperature
from fednc.server.rounds.class_sessions import Sessions
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.data_sums import add_data_sums, ask_for_data_sums, check_form
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.initialisation import Conversation, draw_with_gain, initialise, needs_clients, scaled
from fednc.server.rounds.method_steps import MethodSteps
from fednc.server.rounds.probe import ask_for_pick, probe_waits
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.rounds.sums_exchange import Answers
from fednc.server.rounds.test_evaluation import CentralEvaluation
from fednc.server.rounds.waiting import ClientsWait, save_patiently
from fednc.server.storage import probe_record
from fednc.server.storage.changed_run_file import Changes, as_text
from fednc.server.storage.checkpoint import Checkpoint, Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import (
    BestKept,
    BestLost,
    ConfidenceMeasured,
    DataNote,
    JudgedByTestData,
    LastRoundEvaluated,
    RoundCompleted,
    RunFileChanged,
    RunResumed,
    RunStopped,
    StoppedEarly,
    WeightsLoaded,
)
from fednc.server.storage.history import History, RoundRecord
from fednc.server.storage.probe_record import Decision

BEST = "best"  # folder of the best round's checkpoint, in the run's folder
_TRIES = 3  # for a round that stays below quorum
CPU = torch.device("cpu")
log = logging.getLogger("fednc.server")


@dataclass(kw_only=True)
class RunResult:
    """The outcome of a finished run."""

    run: RunConfig
    task: Task
    frame: Frame
    state: GlobalState
    history: History
    evaluation: CentralEvaluation | None
    class_names: tuple[str, ...]  # so far
    traffic: Traffic
    after: Afterwards = field(default_factory=Afterwards)
    probe: Mapping[str, Any] = field(default_factory=dict)  # what the probe said
    client_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # the last ones, by name


class FederatedRun:
    """The parts of one run and its progress; `execute` runs it over a grid.

    Attributes:
        asks_for_sums: whether clients are asked for sums of their data before round 1.
        stage: the current one; the state is narrowed to its tensors.
        opened: the last session whose memory was pooled; 0: none.
    """

    # Built by `_set_up`, again once a probe has picked.
    run: RunConfig
    task: Task
    asks_for_sums: bool
    frame: Frame
    model: torch.nn.Module
    layout: Layout | None
    state: GlobalState
    stage: Stage
    history: History
    evaluation: CentralEvaluation | None

    def __init__(
        self,
        run: RunConfig,
        events: EventLog,
        device: torch.device = CPU,
        *,
        resumes: bool = False,
        decided: Decision | None = None,
    ) -> None:
        """Load everything the server needs.

        Args:
            run: the run file.
            events: where events are recorded.
            device: where the server evaluates its own test data.
            resumes: a checkpoint will be restored, so the file of `task.weights` is not needed.
            decided: what is known of the run's probe; None: what the run file says.

        Raises:
            ConfigError, DataError: the task or the test data cannot be used.
        """
        self.events, self._device = events, device
        self._digest, self._config = run.digest, run.decisive()  # without class names that operators give later
        picked = run.probe.picked if run.probe else None
        self._decided = decided or Decision(picked, by_operator=picked is not None)
        self._initialised: dict[str, Any] = {}
        self._changed: Changes = {}  # keys of the run file changed since the checkpoint that was restored
        self.opened = 0
        self.after = Afterwards()
        self.best: GlobalState | None = None  # the state after the best round, for `rounds.keep`
        self._good: GlobalState | None = None  # the state after the last round whose loss had not exploded
        self.data_sums: Answers | None = None  # once the clients were asked
        self._set_up(with_pick(run, self._decided.pick) if self._decided.pick else run, resumes=resumes)

    def _set_up(self, run: RunConfig, *, resumes: bool = False) -> None:
        """Build everything that depends on the task."""
        self.run, self.task = run, discovery.get(run)
        if run.probe and not run.probe.picked:
            check_candidates(run, self.task)
        self.asks_for_sums = check_form(self.task)
        self.frame = self.task.frame(seeds.derive(run.seed, "frame"))
        torch.manual_seed(seeds.derive(run.seed, "model"))
        self.model = model = self.task.new_model()
        draw_with_gain(model, run.init.gain)
        if run.task.weights and not resumes:
            self._load_weights(Path(run.task.weights))
        self.layout = Layout.of(model, self.task.shared_keys(model)) if needs_clients(run) else None
        shared = model.state_dict()
        keys = self.task.shared_keys(model)
        steps = MethodSteps(registry.parts(run.method), self.task.stepped_keys(model))
        self.state = GlobalState(
            model={key: shared[key].clone() for key in keys},
            memories=Memories.all_from(ClassMemory.empty(self.frame.vertices, self.task.memory_dim)),
            methods=steps,
            extra=steps.beside(
                {name: p.detach() for name, p in model.named_parameters() if name in steps.stepped}
            ),
            kept=steps.kept({key: shared[key] for key in keys if key in steps.stepped}),
        )
        self.stage = self.task.stage(1)
        self.history = History(primary=self.task.primary, shown=self.task.summary_metrics)
        self.evaluation = self._central_evaluation(model)
        self._check_personal(model)

    def _check_personal(self, model: torch.nn.Module) -> None:
        if not self.run.personal or self.run.personal.train != "head":
            return
        head = self.task.head_keys(model)
        if not head:
            raise ConfigError(
                f"personal.train = 'head': task {self.task.name!r} does not say which layers are its head. Set "
                "it to 'all', or override head_keys in the task"
            )
        if all(self.task.combining(key) == Aggregation.FIXED for key in head):
            raise ConfigError(
                "personal.train = 'head': this run trains none of these layers, as with method.projection = "
                "'fitted' or 'drawn'. Set it to 'all'"
            )

    def _load_weights(self, path: Path) -> None:
        """Start from the tensors in a file. Raises ConfigError."""
        given, sha256 = initial_weights.read(path)
        notes = self.task.load_weights(self.model, given)
        self.events.emit(WeightsLoaded(text=f"weights of {path}: {'; '.join(notes)}", sha256=sha256))

    def _central_evaluation(self, model: torch.nn.Module) -> CentralEvaluation | None:
        if not self.run.evaluate.test:
            return None
        fault_injection.at("server.data")
        data = self.task.load_test(self.run.evaluate.test)
        for note in data.notes:
            self.events.emit(DataNote(text=f"test data: {note}"))
        return CentralEvaluation(self.task, model, data, self.run.evaluate.batch, self._device)

    def execute(self, grid: Grid, around: Surroundings | None = None) -> RunResult:
        """Run all rounds over any grid.

        Raises:
            QuorumError: too few clients came, or too few answered a round three times in a row.
        """
        around = around or Surroundings()
        if self.run.probe and not self.state.completed:
            self._probe(grid, around)
        RoundLoop(self, grid, around).drive()
        return replace(self._result(self.state), client_metrics=dict(around.client_metrics.latest))

    def _probe(self, grid: Grid, around: Surroundings) -> None:
        """Let the clients try the candidates, unless one is picked, and wait for an operator if [probe] says so.

        Raises:
            QuorumError: too few clients came.
        """
        strategy, section = self.strategy(around), section_of(self.run)
        wait = ClientsWait(self.run.rounds, grid, around, self.events)
        if section.picked is None and wait.for_clients(strategy.quorum):
            verdict = ask_for_pick(strategy, grid, self._totals(strategy, grid), around.keep_probe)
            if verdict is not None:
                self._decided = Decision(verdict.pick, verdict.to_json())
                self._set_up(with_pick(self.run, verdict.pick))
                around.expect_replies(self.state)
        if section.then == "ask" and self._decided.pick and not self._decided.by_operator and around.has_operator:
            around.control.pause()
            self.events.emit(probe_waits(self._decided.pick))

    def _totals(self, strategy: FrameStrategy, grid: Grid) -> Stats:
        """The totals of the sums of the data; {} if the task asks for none, or nobody sends any. Asks once."""
        if not self.asks_for_sums:
            return {}
        self.data_sums = self.data_sums or ask_for_data_sums(strategy, grid)
        return self.data_sums.total.value() if self.data_sums.added else {}

    def strategy(self, around: Surroundings) -> FrameStrategy:
        """A strategy that continues from the current state."""
        return FrameStrategy(self.run, self.task, self.frame, self.state, self.events, around)

    # ---- results -------------------------------------------------------------------------------------------

    @property
    def last_good(self) -> RunResult | None:
        """The outcome of a run that ends early: the model of its last good round; None if there is none."""
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
            traffic=self.traffic,
            after=self.after,
            probe=self._decided.verdict or {},
        )

    @property
    def traffic(self) -> Traffic:
        """The bytes of the model that travel, once and in each round."""
        trained = self.task.trained_keys(self.model, self.stage) if self.run.train.epochs else []
        return Traffic.of(self.state.model, trained)

    @property
    def registry(self) -> ClassRegistry:
        """The classes so far."""
        return self.task.registry.first(self.stage.number)

    # ---- progress ------------------------------------------------------------------------------------------

    def initialise(self, clients: Conversation, layout: Layout) -> None:
        """Scale the drawn weights as `[init]` asks for. Raises QuorumError."""
        scale_P, self._initialised = initialise(clients, self.events)
        self.state.replace_model(arrays.to_record(scaled(self.state.model, layout, scale_P)))

    def adopt(self, run: RunConfig) -> None:
        """Continue with `run`, in which more classes have names."""
        self.run, self.task = run, discovery.get(run)
        self.evaluation = self._central_evaluation(self.model)

    def enter(self, stage: Stage) -> None:
        """Narrow the state to what the stage trains."""
        self.stage = stage
        self.state.narrow(self.task.trained_keys(self.model, stage))

    def open(self, stage: Stage) -> None:
        """Note that the memory of the stage's classes was pooled: a restart must not do it again."""
        self.opened = stage.number

    def keep(self, record: RoundRecord) -> None:
        """Add a completed round to the history, with what happened since the round before."""
        record.init, self._initialised = self._initialised, {}
        record.changed, self._changed = self._changed, {}
        self.history.rounds.append(record)
        if not self.history.has_exploded:
            self._good = self.state.snapshot()

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def checkpoint(self, around: Surroundings) -> Checkpoint:
        """Everything that `restore` needs to continue after the last completed round."""
        bytes_up, bytes_down = around.traffic()
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
            parts=around.parts(),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            accepted=self.state.accepted,
            classes=self.registry.to_json() if self.run.sessions else None,
            picked=self.run.probe.picked if self.run.probe else None,
            opened=self.opened if self.task.stage(self.state.completed).number < self.opened else 0,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue after the checkpoint's round. Raises ProtocolError if its frame is invalid."""
        if self.frame.vertices:
            self.frame = Frame.from_tensor(checkpoint.tensors["frame.etf_KD"], self.frame.seed)
        self.state = self._state_of(checkpoint)
        self.opened, self._changed = checkpoint.opened, checkpoint.changed
        self.history = History.from_json(checkpoint.history, self.task.primary, self.task.summary_metrics)
        self._good = self.state.snapshot()
        if checkpoint.classes:
            self._recall(ClassRegistry.from_json(checkpoint.classes))
        self.stage = self.task.stage(self.state.completed + 1)
        text = f"continuing after round {checkpoint.round}"
        self.events.emit(RunResumed(text=text, round=checkpoint.round))

    def _state_of(self, checkpoint: Checkpoint) -> GlobalState:
        model = checkpoint.under("model.")  # safetensors sorts names; we need the model's own order
        return GlobalState(
            model={key: model[key] for key in self.state.model},
            memories=Memories.from_tensors(checkpoint.tensors),
            methods=self.state.methods,
            extra=checkpoint.under("extra."),
            kept=checkpoint.under("method."),
            accepted=None if checkpoint.accepted is None else dict(checkpoint.accepted),
            completed=checkpoint.round,
        )

    def restore_best(self, saved: Checkpoints | None) -> None:
        """After `restore`: the state of the best round, for `rounds.keep`. The loop saves that of the last one."""
        best = self.history.best_round
        if saved is None or best is None or best == self.state.completed:
            return
        try:
            found = saved.latest(self._digest, self._config)
        except (ConfigError, DataError):
            found = None
        if found is not None and found.round == best:
            self.best = self._state_of(found)

    def note_best(self) -> None:
        """The current state is the best one so far."""
        self.best = self.state.snapshot()

    def choose_model(self) -> None:
        """Go back to the best round if `rounds.keep` asks for it."""
        best = self.history.best_round
        if self.run.rounds.keep != "best" or best is None or best == self.state.completed:
            return
        if self.best is None or self.best.completed != best:
            text = f"the model of round {best}, the best one, cannot be restored: the run ends with its last model"
            self.events.emit(BestLost(text=text))
            return
        self.state.go_back_to(self.best)
        self.events.emit(BestKept(text=f"the run ends with the model of round {best}, the best one", round=best))

    def _recall(self, registry: ClassRegistry) -> None:
        """Restore class names that operators gave. Raises ConfigError if the run file now has other names."""
        for number, names in enumerate(registry.groups[1:], start=1):
            if not self.run.sessions[number - 1].classes:
                self.adopt(with_names(self.run, number, names))
        self.task.registry.check_continues(registry)


def checkpoints_of(run: RunConfig, folder: Path) -> tuple[Checkpoints, Checkpoints | None]:
    """(checkpoints of the run in `folder`, that of its best round; None if the run does not ask for it)."""
    keeps_best = run.rounds.keep == "best" and run.server.keep_checkpoints > 0
    return Checkpoints(folder, run.server.keep_checkpoints), Checkpoints(folder / BEST, 1) if keeps_best else None


def new_or_continued(
    run: RunConfig, events: EventLog, folder: Path, checkpoints: Checkpoints, best: Checkpoints | None = None
) -> tuple[FederatedRun, Checkpoint | None]:
    """A new run, or the run in `folder` restored from its newest checkpoint. Raises ConfigError, DataError."""
    kept = checkpoints.latest(run.digest, run.decisive())
    if kept and kept.changed:
        text = f"the run file has changed since round {kept.round}: {as_text(kept.changed)}"
        events.emit(RunFileChanged(text=text, round=kept.round, changed=kept.changed))
    decided = probe_record.decision(folder, run, kept.picked if kept else None, has_begun=kept is not None)
    prepared = FederatedRun(run, events, resumes=kept is not None, decided=decided)
    if kept:
        prepared.restore(kept)
        prepared.restore_best(best)
    return prepared, kept


class RoundLoop:
    """Runs one run over one grid, round by round."""

    def __init__(self, prepared: FederatedRun, grid: Grid, around: Surroundings) -> None:
        events = prepared.events
        self._prepared, self._grid, self._around, self._events = prepared, grid, around, events
        self._control = around.control
        self._strategy = prepared.strategy(around)
        self._clients = ClientsWait(prepared.run.rounds, grid, around, events)
        self._sessions = Sessions(self._strategy, around.control, events, prepared.run.rounds.wait_s)
        self._entered: Stage | None = None
        self._warned_of_test = False

    def drive(self) -> None:
        """Run the remaining rounds, until an operator stops the run. Raises QuorumError."""
        prepared = self._prepared
        self._control.begin(prepared.history.primary)
        self._strategy.summary(prepared.traffic)
        if self._around.returning:
            self._clients.for_returning()
        self._save_best()
        for server_round in range(prepared.state.completed + 1, prepared.run.all_rounds + 1):
            if self._has_stalled():
                break
            begins = self._enter(server_round) and self._add_data_sums(server_round)
            begins = begins and self._initialise(server_round)
            if not (begins and self._one_round(server_round)):
                self._stop_before(server_round)
                break
        self._prepared.choose_model()
        if self._prepared.state.completed and not self._control.over:
            self._after_rounds()

    def _has_stalled(self) -> bool:
        """Whether `rounds.stop_after` ends the run now. It depends on the history alone, also after a restart."""
        history = self._prepared.history
        patience = self._prepared.run.rounds.stop_after
        if not history.has_stalled(patience):
            return False
        number, best = history.rounds[-1].round, history.best_round
        assert best is not None
        name = history.primary.name
        text = (
            f"stopped after round {number}: {name} has not improved in {patience} evaluations since round {best}"
        )
        self._events.emit(StoppedEarly(text=text, round=number, best=best))
        return True

    def _after_rounds(self) -> None:
        """The exchanges after the last round, with the model that the run ends with."""
        prepared, strategy = self._prepared, self._strategy
        if self._entered is None:  # restarted after the last round
            self._narrow(prepared.task.stage(prepared.state.completed))
        if is_calibrated(prepared.task):
            prepared.after = fit_temperature(strategy, self._grid)
            self._measure_confidence()
        if prepared.run.personal and not self._control.over:
            found = ask_for_personal_models(strategy, self._grid, prepared.after.temperature)
            prepared.after = replace(prepared.after, personal=found)

    def _measure_confidence(self) -> None:
        """What the temperature is worth on the server's test data."""
        prepared, after = self._prepared, self._prepared.after
        if prepared.evaluation is None:
            return
        guide, state = self._strategy.guide_at(prepared.state.completed), prepared.state.model
        test = {"before": prepared.evaluation.confidence(state, guide)}
        if after.temperature != 1:
            tempered = replace(guide, temperature=after.temperature)
            test["after"] = prepared.evaluation.confidence(state, tempered)
        prepared.after = replace(after, calibration={**after.calibration, "test": test})
        errors = [f"{one['calibration_error']:.1%}" for one in test.values()]
        losses = [f"{one['loss']:.3f}" for one in test.values() if one["loss"] is not None]
        text = f"on test data: calibration error {', then '.join(errors)}; log-loss {', then '.join(losses)}"
        self._events.emit(ConfidenceMeasured(text=text))

    def _enter(self, server_round: int) -> bool:
        """Enter the stage of a round if it is a new one; False if an operator stops the run instead."""
        prepared = self._prepared
        stage = prepared.task.stage(server_round)
        if stage == self._entered:
            return True
        begins = not stage.is_first and server_round == stage.first and prepared.opened != stage.number
        if begins and stage.waits:
            names = self._sessions.wait_for_operator(stage)
            if names is None:
                return False
            stage = self._name(stage, names)
        self._narrow(stage)
        if begins:
            if not (self._clients.for_clients(stage.min_clients) and self._sessions.open(stage, self._grid)):
                return False
            prepared.open(stage)
            self._save()
        self._entered = stage
        return True

    def _name(self, stage: Stage, names: tuple[str, ...]) -> Stage:
        """The stage after its classes got these names, which the run file may have left open."""
        prepared = self._prepared
        if names != prepared.run.sessions[stage.number - 1].classes:
            prepared.adopt(with_names(prepared.run, stage.number, names))
        return prepared.task.stages[stage.number]

    def _narrow(self, stage: Stage) -> None:
        prepared = self._prepared
        prepared.enter(stage)
        self._strategy.enter(stage, prepared.run, prepared.task)
        self._control.enter_session(stage.number, prepared.registry.names)
        self._around.expect_replies(prepared.state)

    def _add_data_sums(self, server_round: int) -> bool:
        """Do what the task asks for before round 1; False if an operator stops the run instead."""
        prepared, strategy = self._prepared, self._strategy
        if not prepared.asks_for_sums or server_round > 1:
            return True
        if not self._clients.for_clients(strategy.quorum):
            return False
        prepared.data_sums = prepared.data_sums or ask_for_data_sums(strategy, self._grid)
        add_data_sums(strategy, prepared.model, prepared.data_sums)
        return True

    def _initialise(self, server_round: int) -> bool:
        """Do what [init] asks for before round 1; False if an operator stops the run instead."""
        prepared, strategy = self._prepared, self._strategy
        if prepared.layout is None or server_round > 1:
            return True
        if not self._clients.for_clients(strategy.quorum):
            return False
        clients = Conversation(
            prepared.run,
            prepared.layout,
            prepared.state.record,
            strategy.guide(),
            strategy.replies,
            self._grid,
            strategy.sample(server_round, self._grid),
            strategy.quorum,
        )
        prepared.initialise(clients, prepared.layout)
        return True

    def _one_round(self, server_round: int) -> bool:
        """Run one round; False if an operator stops the run first."""
        prepared, strategy = self._prepared, self._strategy
        self._control.begin_round(server_round)
        evaluates = strategy.evaluates(server_round)
        for _ in range(_TRIES):
            if not self._clients.for_clients(strategy.quorum):
                return False
            up, down = self._around.traffic()
            record = strategy.run_round(server_round, self._grid, evaluates=evaluates)
            if record is not None:
                break
        else:
            raise _no_quorum(strategy, server_round, _TRIES)
        if self._control.over:  # the round was cut off; an incomplete round must not count
            return False
        if evaluates:
            self._test(record)
        self._end_stage(record)
        now_up, now_down = self._around.traffic()
        record.bytes_up, record.bytes_down = now_up - up, now_down - down
        prepared.keep(record)
        self._save()
        self._save_best()
        named, drifting = self._around.client_metrics.latest, dict(strategy.drift_watch.alarms)
        self._control.complete(record, strategy.fold_s, named, drifting)
        self._report(record)
        return True

    def _stop_before(self, server_round: int) -> None:
        """An operator stopped the run: evaluate its last round, as in every run."""
        self._events.emit(RunStopped(text=f"stopped before round {server_round}", round=server_round))
        last, primary = self._control.last, self._prepared.history.primary
        if last and last.value_of(primary) is None and not self._control.over:
            self._strategy.evaluate_early(self._grid)
            self._test(last)
            value = last.value_of(primary)
            shown = "unknown" if value is None else primary.show(value)
            text = f"round {last.round}: {primary.name} {shown}"
            self._events.emit(LastRoundEvaluated(text=text, record=last))

    def _test(self, record: RoundRecord) -> None:
        prepared = self._prepared
        if prepared.evaluation:
            metrics = prepared.evaluation(prepared.state.model, self._strategy.guide_at(record.round))
            record.test = {name: value for name, value in metrics.items() if math.isfinite(value)}
            if prepared.task.examples_each_round and self._around.keep_examples is not None:
                self._keep_examples(record.round, prepared.evaluation, self._around.keep_examples)

    def _keep_examples(
        self, number: int, evaluation: CentralEvaluation, keep: Callable[[int, Mapping[str, bytes]], None]
    ) -> None:
        """Files for people cost no round: an error in making or writing them is only logged."""
        try:
            keep(number, evaluation.examples(self._prepared.state.model, self._strategy.guide_at(number)))
        except Exception:
            log.exception("no examples of round %d could be written", number)

    def _end_stage(self, record: RoundRecord) -> None:
        """Record the results of a session after its last round."""
        prepared, stage = self._prepared, self._strategy.stage
        if prepared.task.takes_sessions and record.round == stage.last:
            record.session = stage.number
            prepared.model.load_state_dict(prepared.state.model, strict=False)
            guide = self._strategy.guide_at(record.round)
            assert isinstance(prepared.task, Incremental)
            record.memory_cosines = prepared.task.memory_cosines(prepared.model, guide)
            if stage.is_first:
                self._sessions.warn(stage)

    def _save(self) -> None:
        """Save a checkpoint; no round begins before the last one is saved. Raises RunFailedError."""
        if self._around.checkpoints:
            checkpoint = self._prepared.checkpoint(self._around)
            wait_s = self._prepared.run.rounds.wait_s
            save_patiently(self._around.checkpoints, checkpoint, wait_s, self._control, self._events)

    def _save_best(self) -> None:
        """After the round's own checkpoint, so that no crash loses a best model that the history still names."""
        prepared, rounds = self._prepared, self._prepared.run.rounds
        history = prepared.history
        if not self._warned_of_test and history.is_judged_by_test and (rounds.stop_after or rounds.keep == "best"):
            self._warned_of_test = True
            text = (
                "no client holds examples out, so the server's test data decides about rounds.stop_after and "
                "rounds.keep: its figures are then too good. Start clients with --val-share above 0"
            )
            self._events.emit(JudgedByTestData(text=text))
        if rounds.keep != "best" or not history.rounds or history.best_round != prepared.state.completed:
            return
        prepared.note_best()
        if self._around.best:
            checkpoint = prepared.checkpoint(self._around)
            save_patiently(self._around.best, checkpoint, rounds.wait_s, self._control, self._events)

    def _report(self, record: RoundRecord) -> None:
        primary = self._prepared.history.primary
        value = record.value_of(primary)
        shown = "" if value is None else f", {primary.name} {primary.show(value)}"
        loss = "" if record.loss is None else f", loss {record.loss:.3f}"
        held = record.pooled.get(primary.name)
        worst = record.worst_client
        clients = "" if held is None else f", held out {primary.show(held)}"
        clients += f" (worst {worst['name']} {primary.show(worst[primary.name])})" if worst else ""
        text = (
            f"round {record.round}/{self._prepared.run.all_rounds}: {record.replies} replies{loss}{shown}"
            f"{clients} ({record.seconds:.1f} s)"
        )
        self._events.emit(RoundCompleted(text=text, record=record, fold_s=self._strategy.fold_s))


def _no_quorum(strategy: FrameStrategy, server_round: int, tries: int) -> QuorumError:
    return QuorumError(
        f"round {server_round} got fewer than {strategy.quorum} replies {tries} times in a row "
        f"({strategy.replies.reasons}). "
        "Fix the clients, or lower rounds.min_clients, or raise rounds.deadline_s."
    )
