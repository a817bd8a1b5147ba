"""Before round 1: learns scales for the initial weights with the clients, and measures their effect on gradients.

Called once by the run, before any training; the result is in the first checkpoint. Works over any grid. To add a
kind, write a function and add it to `_KINDS`.

Legend: P scaled tensors, N weights in a gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from fednc.common import fault_injection
from fednc.common.config.run import RunConfig
from fednc.common.errors import QuorumError
from fednc.common.initialise import messages, nio
from fednc.common.initialise.messages import REPORT, Order
from fednc.common.initialise.nio import Learnt
from fednc.common.initialise.probe import Layout
from fednc.common.wire import arrays
from fednc.common.wire.messages import Instruction, instruction_content
from fednc.server.rounds.replies import Replies
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ModelInitialised

T = TypeVar("T")
_TRIES = 3  # for a question that stays below quorum
_GRAIN = 2.0**-30  # directions are rounded to multiples of it, so their float64 sum does not depend on the order


@dataclass(frozen=True, kw_only=True)
class GradientAgreement:
    """How far the clients' gradients agree: mean cosine over pairs, mean norm, mean loss."""

    cosine: float
    norm: float
    loss: float
    clients: int


@dataclass(kw_only=True)
class Survey:
    """All clients' gradients at one point: the float64 sum of their directions, norm and loss by node."""

    sum_N: Tensor
    answers: dict[int, tuple[float, float]]  # norm, loss

    @property
    def norms(self) -> list[float]:
        """All norms, sorted, so that the order of arrival does not matter."""
        return sorted(norm for norm, _ in self.answers.values())

    def summary(self) -> GradientAgreement:
        """The means over all clients."""
        losses = sorted(loss for _, loss in self.answers.values())
        count = len(self.answers)
        cosine = nio.mean_cosine(self.sum_N, count)
        return GradientAgreement(
            cosine=cosine, norm=sum(self.norms) / count, loss=sum(losses) / count, clients=count
        )


class Conversation:
    """Asks the clients of one run questions about the model with its initial weights."""

    def __init__(
        self,
        run: RunConfig,
        layout: Layout,
        model: ArrayRecord,
        guide: ArrayRecord,
        replies: Replies,
        grid: Grid,
        nodes: Sequence[int],
        quorum: int,
    ) -> None:
        self.run, self.layout = run, layout
        instruction = Instruction.under(run, 1)
        self._common = dict(instruction_content(instruction, model, guide))  # encoded once for all questions
        self._replies, self._grid, self._nodes, self._quorum = replies, grid, list(nodes), quorum

    def survey(self, scale_P: Tensor, iteration: int) -> Survey:
        """All clients' gradients at these scales. Raises QuorumError."""
        content = self._content(Order(iteration=iteration), {messages.SCALE: scale_P})
        survey = Survey(sum_N=torch.zeros(self.layout.weights, dtype=torch.float64), answers={})

        for node, answer in self._ask(messages.GRADIENT, content, lambda c: messages.answer_in(c, self.layout)):
            survey.sum_N += (answer.unit_N.double() / _GRAIN).round_() * _GRAIN
            survey.answers[node] = (answer.norm, answer.loss)
        return survey

    def slope(self, scale_P: Tensor, iteration: int, survey: Survey, aim: nio.Aim) -> Tensor:
        """float64 [P]: derivative of the objective, summed over the surveyed clients. Raises QuorumError."""
        order = Order(
            iteration=iteration, units=len(survey.answers), cosine=aim.cosine, norm=aim.norm, square=aim.square
        )
        given = {messages.SCALE: scale_P, messages.SUM: survey.sum_N.float()}
        like = messages.forms(self.layout)[messages.SLOPE][messages.SLOPES]
        content = self._content(order, given)
        slopes = dict(self._ask(messages.SLOPE, content, lambda c: messages.tensor_in(c, messages.SLOPES, like)))
        return torch.stack([slopes[node] for node in sorted(slopes)]).sum(dim=0)

    def scales(self) -> list[Tensor]:
        """The scales that each client learnt alone, in order of nodes. Raises QuorumError."""
        content = RecordDict(self._common)
        found = dict(
            self._ask(messages.SCALES, content, lambda c: messages.scales_in(c, self.layout, self.run.init))
        )
        return [found[node] for node in sorted(found)]

    def _content(self, order: Order, given: Mapping[str, Tensor]) -> RecordDict:
        return RecordDict(
            {**self._common, messages.ORDER: order.to_record(), messages.INIT: arrays.to_record(given)}
        )

    def _ask(
        self, question: str, content: RecordDict, read: Callable[[RecordDict], T | None]
    ) -> Iterator[tuple[int, T]]:
        """(node, its answer as decoded by `read`) in order of arrival, without empty answers.

        Clients that fail are asked again as long as the quorum needs them.
        """
        answered = set[int]()
        for _ in range(_TRIES):
            nodes = [node for node in self._nodes if node not in answered]
            timeout_s = self.run.rounds.deadline_s
            for reply in self._replies.ask(self._grid, content, nodes, question, 0, timeout_s):
                fault_injection.at("server.initialise")
                read_or_not = self._replies.take(reply, lambda found: (read(found),))
                if read_or_not:
                    answered.add(reply.metadata.src_node_id)
                    if (found := read_or_not[0]) is not None:
                        yield reply.metadata.src_node_id, found
            if len(answered) >= self._quorum:
                self._nodes = [node for node in self._nodes if node in answered]  # the others join in round 1
                return
        raise QuorumError(
            f"the initialisation got {len(answered)} answers to {question}, {self._quorum} are needed "
            f"({self._replies.reasons}). Fix the clients, or lower rounds.min_clients, or leave [init] out."
        )


class Initialiser(Protocol):
    """A way to find scales. Raises QuorumError."""

    def __call__(self, clients: Conversation) -> Learnt: ...


def ordinary(clients: Conversation) -> Learnt:
    """Keep the weights as they were drawn."""
    return Learnt(scale_P=torch.ones(len(clients.layout.scaled), dtype=torch.float64), steps={})


def by_each(clients: Conversation) -> Learnt:
    """The geometric mean of the scales that each client learnt alone.

    All clients have the same weight, as each is one sub-batch in the cosine. Weights by examples would be one more
    number that a client could lie about.
    """
    found = clients.scales()
    if not found:
        return ordinary(clients)
    log_CP = torch.stack(found).clamp_min(torch.finfo(torch.float64).tiny).log()
    return Learnt(scale_P=log_CP.mean(dim=0).exp(), steps={})


def together(clients: Conversation) -> Learnt:
    """Optimise as if the server had each client's batch as a sub-batch: directions, then slopes, per iteration."""
    section = clients.run.init
    search = nio.Search(clients.layout.floor_P, section)
    for iteration in range(section.iters):
        survey = clients.survey(search.scale_P, iteration)
        if not survey.answers:
            break
        now = search.aim(survey.sum_N, survey.norms)
        search.step(now, clients.slope(search.scale_P, iteration, survey, now))
    return search.learnt()


_KINDS: dict[str, Initialiser] = {"ordinary": ordinary, "nio": by_each, "nio-exact": together}


def draw_with_gain(model: nn.Module, gain: float) -> None:
    """Multiply the initial weights by `gain`; leave out biases and normalisation layers."""
    with torch.no_grad():
        for parameter in model.parameters() if gain != 1 else ():
            if parameter.ndim > 1:
                parameter.mul_(gain)


def needs_clients(run: RunConfig) -> bool:
    """Whether the initialisation exchanges messages with clients before round 1."""
    return run.init.kind != "ordinary" or run.init.report


def initialise(clients: Conversation, events: EventLog) -> tuple[Tensor, dict[str, Any]]:
    """(float64 [P] scales to use, a description for the history). Raises QuorumError."""
    started, section = time.monotonic(), clients.run.init
    none_P = ordinary(clients).scale_P
    survey = clients.survey(none_P, REPORT)
    if not survey.answers:
        return none_P, {}
    before = survey.summary()
    learnt = _KINDS[section.kind](clients)
    changed = not torch.equal(learnt.scale_P, none_P)
    found = clients.survey(learnt.scale_P, REPORT).summary() if changed else before
    used = changed and found.cosine - before.cosine >= section.min_rise
    text = f"initialisation {section.kind}: {_line(before)}"
    text += f" -> {_line(found)}" if changed else ""
    text += "" if used or not changed else f"; rises by less than {section.min_rise:g}, so the drawn weights stay"
    event = ModelInitialised(
        text=text,
        initialiser=section.kind,
        used=used,
        before=asdict(before),
        learnt=asdict(found),
        after=asdict(found if used else before),
        steps={str(name): count for name, count in learnt.steps.items()},
        scales=dict(zip(clients.layout.scaled, learnt.scale_P.tolist(), strict=True)) if changed else {},
        seconds=time.monotonic() - started,
    )
    events.emit(event)
    described = event.fields()
    del described["text"]
    return learnt.scale_P if used else none_P, described


def _line(agreement: GradientAgreement) -> str:
    return f"gradient cosine {agreement.cosine:+.3f}, norm {agreement.norm:.3g}, loss {agreement.loss:.3g}"


def scaled(state: Mapping[str, Tensor], layout: Layout, scale_P: Tensor) -> dict[str, Tensor]:
    """The shared tensors of a model multiplied by their scales, exactly as clients compute it."""
    factors = dict(zip(layout.scaled, scale_P.tolist(), strict=True))
    return {key: value * factors[key] if key in factors else value for key, value in state.items()}
