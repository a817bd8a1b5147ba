"""The form of replies: a run whose honest replies could not pass the limits is refused before it starts."""

from __future__ import annotations

import pytest
import torch

from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.peer_text import SHORT_TEXT
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.wire import arrays
from fednc.common.wire.messages import EXAMPLES, METRICS, MODEL, OWNED, TRAIN
from fednc.protos import federation_pb2 as pb
from fednc.server.link.message_limits import InvalidError, check_header
from fednc.server.link.reply_schema import MOST_OWNED, ReplySchema
from support.prototype_tasks import LINE, LineTask, installed


class OwnersTask(LineTask):
    """Every key is averaged over its owners."""

    def aggregation(self, key: str) -> Aggregation:
        del key
        return Aggregation.OWNERS


def schema_of(keys: list[str]) -> ReplySchema:
    with installed():
        task = OwnersTask(parse_run(LINE))
    return ReplySchema.of(task, dict.fromkeys(keys, torch.zeros(1)), is_first=True)


def header_of(keys: list[str]) -> pb.UploadHeader:
    """A client's reply that gives a weight for each key."""
    values = [pb.Entry(key=key, scalar=pb.Scalar(int=1)) for key in (EXAMPLES, *(f"{OWNED}/{k}" for k in keys))]
    record = pb.Record(name=METRICS, metrics=pb.Values(entries=values))
    return pb.UploadHeader(upload_id=bytes(16), manifest=pb.Manifest(records=[record]))


LONGEST = "k" * (SHORT_TEXT - len(OWNED) - 1)
MOST = [f"k{number}" for number in range(MOST_OWNED)]


@pytest.mark.parametrize("keys", [[LONGEST], MOST])
def test_what_the_schema_takes_passes_the_limits(keys: list[str]) -> None:
    schema_of(keys)
    check_header(header_of(keys), most_bytes=0)


@pytest.mark.parametrize("keys", [[LONGEST + "k"], [*MOST, "more"]])
def test_weights_that_do_not_fit_into_a_reply_are_refused_before_the_run(keys: list[str]) -> None:
    with pytest.raises(ConfigError, match="averaged over their owners"):
        schema_of(keys)


def test_a_longer_key_would_have_cost_an_honest_client_its_place() -> None:
    with pytest.raises(InvalidError):
        check_header(header_of([LONGEST + "k"]), most_bytes=0)


def update_with(names: list[str]) -> pb.Manifest:
    """A reply to an instruction to train, with these tensors."""
    metas = [pb.ArrayMeta(key=name, dtype="float32", shape=[1], stype=arrays.NPY, size=4 + 128) for name in names]
    return pb.Manifest(records=[pb.Record(name=MODEL, arrays=pb.Arrays(items=metas))])


@pytest.mark.parametrize("sent", [[], ["k0"], ["k0", "k1"]])
def test_what_a_client_does_not_own_may_be_left_out(sent: list[str]) -> None:
    schema_of(["k0", "k1"]).check(TRAIN, update_with(sent))


@pytest.mark.parametrize("sent", [["k0", "k2"], ["k0", "k0"]])
def test_a_tensor_that_the_model_does_not_have_or_twice_the_same_is_refused(sent: list[str]) -> None:
    with pytest.raises(InvalidError, match="tensor names"):
        schema_of(["k0", "k1"]).check(TRAIN, update_with(sent))


def test_a_tensor_that_all_clients_train_may_not_be_left_out() -> None:
    with installed():
        task = LineTask(parse_run(LINE))
    schema = ReplySchema.of(task, dict.fromkeys(["k0", "k1"], torch.zeros(1)), is_first=True)
    schema.check(TRAIN, update_with(["k0", "k1"]))
    with pytest.raises(InvalidError, match="k1"):
        schema.check(TRAIN, update_with(["k0"]))
