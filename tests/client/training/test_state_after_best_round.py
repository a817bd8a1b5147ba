"""A run that ends with the model of an earlier round: clients have deleted what they kept beside it then."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import RecordDict

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.client.training.round_state import Past
from fednc.common import flower_adapter
from fednc.common.config.run import parse_run
from fednc.common.tasks import personal
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import EVALUATE, PERSONAL, STATS, Instruction
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.prototype_tasks import LANES, installed, write_line


def test_the_earliest_state_that_is_left_is_read_if_asked_for() -> None:
    state = RecordDict()
    for number in (1, 2, 3):
        Past(state, number, accepted=number - 1).write("kept", {"a": torch.tensor(float(number))})
    assert float(Past(state, 2, accepted=1, or_later=True).read("kept")["a"]) == 2, "that of round 1 is deleted"
    assert float(Past(state, 4, accepted=3, or_later=True).read("kept")["a"]) == 3
    assert Past(state, 2, accepted=1).read("kept") == {}
    assert Past(RecordDict(), 2, accepted=1, or_later=True).read("kept") == {}


def test_a_personal_model_beside_an_earlier_round_has_no_untrained_local_tensors(tmp_path: Path) -> None:
    run = parse_run({**LANES, "rounds": {"total": 3, "min_clients": 1}, "personal": {"train": "all", "epochs": 1}})
    client = ClientConfig(name="c", data=write_line(tmp_path / "c.npz", 0, 200), device="cpu")
    with installed(), LocalGrid(run, [client]) as grid:
        prepared = FederatedRun(run, EventLog())
        prepared.execute(grid)
        guide = messages.guide_record(prepared.frame, prepared.state.memories.real, evaluates=True)

        def measured(kind: str, server_round: int, accepted: int) -> float:
            """The error of the final model, with what the client kept for a round."""
            order = Instruction.under(run, server_round, accepted=accepted)
            content = messages.instruction_content(order, prepared.state.record, guide)
            message = grid.create_message(content, kind, flower_adapter.node_id("c"), "1")
            (reply,) = grid.send_and_receive([message])
            stats = arrays.from_record(reply.content[STATS])
            return float(
                (personal.apart(stats, prepared.task)[personal.BEFORE] if kind == PERSONAL else stats)["rmse_sum"]
            )

        kept, untrained = measured(EVALUATE, 3, 2), measured(EVALUATE, 3, 0)
        assert kept != untrained
        assert measured(PERSONAL, 1, 1) == kept
