"""NIO over a federation with clients that fail, lie or have no examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from fednc.client.app.flower_app import app as fednc_app
from fednc.client.app.initialisation import ClientInitialisation
from fednc.client.app.resident_run import Resident
from fednc.client.link.work_hooks import Hooks
from fednc.common.errors import ProtocolError, QuorumError
from fednc.common.initialise import messages
from fednc.common.initialise.probe import Layout
from fednc.common.wire import arrays
from fednc.server.rounds.context import Surroundings
from support.initialisation_federation import INIT, NAMES, SPLIT, App, central_place, local, small_run, told


def spoiling(spoil: Callable[[Message, Message], Message]) -> App:
    """The app, with the first client's answers to the initialisation changed by `spoil`."""

    def app(message: Message, context: Context) -> Message:
        reply = fednc_app(message, context)
        ours = context.node_config["name"] == NAMES[0] and message.metadata.message_type.startswith("query.init")
        return spoil(message, reply) if ours else reply

    return app


def fail(message: Message, reply: Message) -> Message:
    raise RuntimeError("out of memory")


def lie(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Message, Message], Message]:
    def spoil(message: Message, reply: Message) -> Message:
        ((key, value),) = arrays.from_record(reply.content[messages.INIT]).items()  # type: ignore[arg-type]
        reply.content[messages.INIT] = arrays.to_record({key: change(value)})
        return reply

    return spoil


LIES = {
    "no number": lie(lambda value: value * float("nan")),
    "absurd": lie(lambda value: value * 1e30),
    "too short": lie(lambda value: value[:-1]),
    "another type": lie(lambda value: value.half()),
}


@pytest.mark.parametrize("spoil", [fail, *LIES.values()], ids=["fails", *LIES])
@pytest.mark.parametrize("kind", ["nio", "nio-exact"])
def test_a_client_with_unusable_answers_is_left_out(
    kind: str, spoil: Callable[[Message, Message], Message]
) -> None:
    run = small_run({**INIT, "kind": kind, "iters": 2}, split=SPLIT, min_clients=2)
    rejected = list[int]()
    around = Surroundings(reject=lambda node, _reason: rejected.append(node))
    result = local(run, spoiling(spoil), around)
    assert told(result)["before"]["clients"] == 2
    assert bool(rejected) == (spoil is not fail)
    assert result.history.rounds[0].replies == 3, "it trains all the same"


def test_below_the_quorum_the_run_says_who_failed() -> None:
    with pytest.raises(QuorumError, match=r"2 answers .* 3 are needed.*anna: failed"):
        local(small_run(INIT, split=SPLIT), spoiling(fail))


def test_a_client_without_examples_does_not_count() -> None:
    run = small_run(INIT)
    here, _ = central_place(run)
    train, _ = here.data.hold_out(0.5, 0)
    empty = train.select(torch.zeros(0, dtype=torch.int64).numpy())  # type: ignore[attr-defined]
    resident = Resident(
        run=run,
        task=here.task,
        model=here.model,
        train=empty,
        held_out=empty,
        device=torch.device("cpu"),
        node="a",
        min_sum_examples=1,
    )
    client = ClientInitialisation(resident, empty, here.guide, Hooks())
    content = RecordDict({messages.ORDER: messages.Order(iteration=0).to_record()})
    layout = Layout.of(here.model, here.task.shared_keys(here.model))
    assert messages.answer_in(client.gradient(content), layout) is None
    assert messages.scales_in(client.scales(), layout, run.init) is None
    assert not client.slope(content)[messages.INIT]


def test_scales_that_no_steps_reach_are_refused() -> None:
    run = small_run({**INIT, "kind": "nio"})
    here, _ = central_place(run)
    layout = Layout.of(here.model, here.task.shared_keys(here.model))
    for value in (0.001, 1e6):
        scale_P = torch.full((len(layout.scaled),), value, dtype=torch.float64)
        reply = RecordDict({messages.INIT: arrays.to_record({messages.SCALE: scale_P})})
        with pytest.raises(ProtocolError, match="scales of"):
            messages.scales_in(reply, layout, run.init)


def test_norms_and_directions_are_checked() -> None:
    layout = Layout(scaled=("w",), differentiated=("w",), weights=2)
    good = messages.Answer(torch.tensor([0.6, 0.8]), 2.0, 1.0)
    assert messages.answer_in(good.to_content(), layout) is not None
    for bad in (
        messages.Answer(torch.tensor([6.0, 8.0]), 2.0, 1.0),
        messages.Answer(good.unit_N, -1.0, 1.0),
        messages.Answer(good.unit_N, float("inf"), 1.0),
        messages.Answer(good.unit_N, 1.0, float("nan")),
    ):
        with pytest.raises(ProtocolError):
            messages.answer_in(bad.to_content(), layout)
