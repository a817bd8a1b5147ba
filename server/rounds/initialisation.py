"""Before round one: scales of the drawn weights, learnt with the clients, and what that did to their gradients.

Called once by the run, before anything is trained; what it leaves behind is in the first checkpoint. Speaks with
clients over any grid. A new kind joins by a function and a line in `_KINDS`.

Legend: P scaled tensors, N weights in gradients.
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
from fednc.common.wire import messages as exchange
from fednc.common.wire.messages import Instruction
from fednc.server.rounds.replies import Replies
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ModelInitialised

T = TypeVar("T")
_TRIES = 3  # of one question below quorum
_GRAIN = 2.0**-30  # directions are rounded to it: their float64 sum is then the same in any order of arrival


@dataclass(frozen=True, kw_only=True)
class GradientAgreement:
    """How the clients' gradients stand to one another: mean cosine over pairs, mean norm, mean loss."""

    cosine: float
    norm: float
    loss: float
    clients: int


@dataclass(kw_only=True)
class Survey:
    """All clients' gradients at one point: float64 sum of directions, and the rest by node."""

    sum_N: Tensor
    answers: dict[int, tuple[float, float]]  # norm, loss

    @property
    def norms(self) -> list[float]:
        """In an order that does not depend on that of arrival."""
        return sorted(norm for norm, _ in self.answers.values())

    def summary(self) -> GradientAgreement:
        """In figures."""
        losses = sorted(loss for _, loss in self.answers.values())
        count = len(self.answers)
        cosine = nio.mean_cosine(self.sum_N, count)
        return GradientAgreement(
            cosine=cosine, norm=sum(self.norms) / count, loss=sum(losses) / count, clients=count
        )


class Conversation:
    """Questions to the clients of one run about one model with its first weights."""

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
        self._common = dict(exchange.instruction_content(instruction, model, guide))  # sent again and again, once
        self._replies, self._grid, self._nodes, self._quorum = replies, grid, list(nodes), quorum

    def survey(self, scale_P: Tensor, iteration: int) -> Survey:
        """Everybody's gradient at these scales. Raises QuorumError."""
        content = self._content(Order(iteration=iteration), {messages.SCALE: scale_P})
        survey = Survey(sum_N=torch.zeros(self.layout.weights, dtype=torch.float64), answers={})

        for node, answer in self._ask(messages.GRADIENT, content, lambda c: messages.answer_in(c, self.layout)):
            survey.sum_N += (answer.unit_N.double() / _GRAIN).round_() * _GRAIN
            survey.answers[node] = (answer.norm, answer.loss)
        return survey

    def slope(self, scale_P: Tensor, iteration: int, survey: Survey, aim: nio.Aim) -> Tensor:
        """float64 [P]: derivative of what is minimised, by those who were surveyed. Raises QuorumError."""
        order = Order(
            iteration=iteration, units=len(survey.answers), cosine=aim.cosine, norm=aim.norm, square=aim.square
        )
        given = {messages.SCALE: scale_P, messages.SUM: survey.sum_N.float()}
        like = messages.forms(self.layout)[messages.SLOPE][messages.SLOPES]
        content = self._content(order, given)
        slopes = dict(self._ask(messages.SLOPE, content, lambda c: messages.tensor_in(c, messages.SLOPES, like)))
        return torch.stack([slopes[node] for node in sorted(slopes)]).sum(dim=0)

    def scales(self) -> list[Tensor]:
        """What each client learnt alone, by node. Raises QuorumError."""
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
        """(node, what `read` finds in its answer) as they arrive, without those who have nothing to say.

        Those who fail are asked again while they are needed for a quorum.
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
                self._nodes = [node for node in self._nodes if node in answered]  # the others come with round 1
                return
        raise QuorumError(
            f"the initialisation got {len(answered)} answers to {question}, {self._quorum} are needed "
            f"({self._replies.reasons}). Mend the clients, or lower rounds.min_clients, or leave [init] out."
        )


class Initialiser(Protocol):
    """How scales come about. Raises QuorumError."""

    def __call__(self, clients: Conversation) -> Learnt: ...


def ordinary(clients: Conversation) -> Learnt:
    """The weights as they were drawn."""
    return Learnt(scale_P=torch.ones(len(clients.layout.scaled), dtype=torch.float64), steps={})


def by_each(clients: Conversation) -> Learnt:
    """Geometric means of what each client learnt alone: scales multiply.

    Every client has one voice, as it is one sub-batch in the cosine; a weight by examples would be one more number
    to believe.
    """
    found = clients.scales()
    if not found:
        return ordinary(clients)
    log_CP = torch.stack(found).clamp_min(torch.finfo(torch.float64).tiny).log()
    return Learnt(scale_P=log_CP.mean(dim=0).exp(), steps={})


def together(clients: Conversation) -> Learnt:
    """As if the server held each client's batch as one sub-batch: directions, then slopes, in every iteration."""
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
    """Multiply the drawn weights, not the biases and not what normalises."""
    with torch.no_grad():
        for parameter in model.parameters() if gain != 1 else ():
            if parameter.ndim > 1:
                parameter.mul_(gain)


def speaks(run: RunConfig) -> bool:
    """Whether there is anything to say to clients before round 1."""
    return run.init.kind != "ordinary" or run.init.report


def initialise(clients: Conversation, events: EventLog) -> tuple[Tensor, dict[str, Any]]:
    """(float64 [P] scales to use, what is told of them). Raises QuorumError."""
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
    text += "" if used or not changed else f"; rises by less than {section.min_rise:g}, the drawn weights stay"
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
    told = event.fields()
    del told["text"]
    return learnt.scale_P if used else none_P, told


def _line(agreement: GradientAgreement) -> str:
    return f"gradient cosine {agreement.cosine:+.3f}, norm {agreement.norm:.3g}, loss {agreement.loss:.3g}"


def scaled(state: Mapping[str, Tensor], layout: Layout, scale_P: Tensor) -> dict[str, Tensor]:
    """The shared tensors of a model with their scales, as clients computed them."""
    factors = dict(zip(layout.scaled, scale_P.tolist(), strict=True))
    return {key: value * factors[key] if key in factors else value for key, value in state.items()}
