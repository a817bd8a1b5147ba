"""The stages of a run: their rounds, classes and number of clients. A run without [[sessions]] is one stage.

Server and client each derive them from the run file, with the same result. Must not know what a task does in a
stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from fednc.common.config.class_sessions import ClassSessionSection
from fednc.common.config.run import RunConfig
from fednc.common.config.tables import TrainSection


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A series of rounds over the same classes.

    Attributes:
        number: 0 for the first stage; the others are the class sessions ([[sessions]]), in order.
        first: its first round; rounds count from 1 over all stages.
        last: its last round.
        earlier: number of classes from before it; its own are `earlier` to `classes` - 1.
        classes: number of classes at its end; these are evaluated.
        train: how clients train in it.
        min_clients: replies that a round needs to count.
        shots: examples of each of its classes that a client trains on; 0: all it has.
        waits: whether an operator starts it.
    """

    number: int = 0
    first: int = 1
    last: int
    earlier: int = 0
    classes: int
    train: TrainSection
    min_clients: int
    shots: int = 0
    waits: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the first stage, in which all classes are new."""
        return self.number == 0

    def round_within(self, server_round: int) -> int:
        """The round's number within the stage, from 1."""
        return server_round - self.first + 1


def stages_of(run: RunConfig, groups: tuple[tuple[str, ...], ...]) -> tuple[Stage, ...]:
    """The stages of `run`, with one group of classes per stage."""
    stages = [
        Stage(
            last=run.rounds.total,
            classes=len(groups[0]),
            train=run.train,
            min_clients=min(run.rounds.min_clients, run.rounds.clients_per_round or run.rounds.min_clients),
        )
    ]
    for session, group in zip(run.sessions, groups[1:], strict=True):
        stages.append(_next(stages[-1], run.train, session, len(group)))
    return tuple(stages)


def stage_at(stages: tuple[Stage, ...], server_round: int) -> Stage:
    """The stage of a round."""
    return next((stage for stage in stages if server_round <= stage.last), stages[-1])


def with_names(run: RunConfig, number: int, names: tuple[str, ...]) -> RunConfig:
    """`run` with these classes in class session `number`."""
    sessions = list(run.sessions)
    sessions[number - 1] = sessions[number - 1].model_copy(update={"classes": names})
    return run.model_copy(update={"sessions": tuple(sessions)})


def _next(before: Stage, train: TrainSection, session: ClassSessionSection, classes: int) -> Stage:
    changed = {"lr": train.lr * session.lr_factor, "epochs": session.epochs or train.epochs}
    return Stage(
        number=before.number + 1,
        first=before.last + 1,
        last=before.last + session.rounds,
        earlier=before.classes,
        classes=before.classes + classes,
        train=train.model_copy(update=changed),
        min_clients=session.min_clients,
        shots=session.shots,
        waits=session.start == "operator",
    )
