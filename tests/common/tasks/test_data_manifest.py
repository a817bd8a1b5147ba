"""Data manifests: no small count leaves, fingerprints need the key, and what a peer sends is checked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.tasks.data_column import DataColumn
from fednc.common.tasks.data_manifest import (
    MOST_BYTES,
    DataManifest,
    bucket,
    changes_between,
    fingerprint,
    make_manifest,
    without_data,
)
from fednc.common.tasks.tensor_data import LabelledTensors

KEY = b"k" * 32


def labelled(examples: int = 50, seed: int = 0) -> LabelledTensors:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 3, generator=generator)
    label_N = torch.arange(examples) % 4
    return LabelledTensors(tensors=(inputs, label_N), label_space=4)


@given(st.integers(0, 1 << 40))
def test_a_bucket_tells_no_small_count_and_the_others_within_a_factor_of_two(count: int) -> None:
    found = bucket(count)
    assert found in (0, *(1 << power for power in range(4, 41)))
    assert (found == 0) == (count == 0)
    assert count <= 16 or found / 2 < count <= found
    assert bucket(found) == found


def test_a_manifest_survives_its_text_and_says_what_the_data_is() -> None:
    train, held_out = labelled().hold_out(0.2, 1)
    made = make_manifest(train, held_out, KEY)
    assert DataManifest.parse(made.to_text()) == made
    assert made.columns == (
        DataColumn(name="0", dtype="float32", shape=(3,)),
        DataColumn(name="1", dtype="int64"),
    )
    assert (made.examples, made.held_out, made.class_counts) == (64, 16, (16, 16, 16, 16))


@given(seed=st.integers(0, 99))
def test_a_fingerprint_depends_on_examples_and_key_only(seed: int) -> None:
    data = labelled()
    whole = fingerprint([data], KEY)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed)).numpy()
    assert fingerprint(data.select(order).hold_out(0.3, seed), KEY) == whole
    assert fingerprint([data], b"x" * 32) != whole, "nobody without the key can test a guess"
    data.tensors[0][seed % 50, seed % 3] += 1
    assert fingerprint([data], KEY) != whole
    assert fingerprint([labelled(49)], KEY) != whole


def test_a_repeated_example_does_not_cancel_out() -> None:
    data = labelled()
    twice = LabelledTensors(tensors=tuple(torch.cat([each, each]) for each in data.tensors), label_space=4)
    assert fingerprint([twice], KEY) not in (fingerprint([data], KEY), fingerprint([], KEY))


def test_only_form_counts_as_a_change() -> None:
    data = labelled()
    made = make_manifest(data, data, KEY)
    more = make_manifest(labelled(500, seed=3), data, KEY)
    assert changes_between(made, more) == []
    relabelled = made.model_copy(update={"labels": {"0": "b", "1": "a"}})
    assert changes_between(made, relabelled) == [
        "label '0' was None and is 'b'",
        "label '1' was None and is 'a'",
    ]
    wider = made.model_copy(
        update={"columns": (DataColumn(name="0", dtype="float32", shape=(4,)), made.columns[1])}
    )
    assert changes_between(made, wider) == ["column '0' was float32[3] and is float32[4]"]


def test_a_long_label_map_travels_as_its_digest() -> None:
    labels = {str(i): f"class number {i}" for i in range(2000)}
    long = DataManifest(columns=(DataColumn(name="0", dtype="int64"),), labels=labels)
    text = long.to_text()
    assert len(text) <= MOST_BYTES
    short = DataManifest.parse(text)
    assert (short.labels, short.form_digest) == ({}, long.form_digest)
    other = DataManifest(columns=long.columns, labels={**labels, "7": "another"})
    assert DataManifest.parse(other.to_text()).form_digest != long.form_digest
    assert changes_between(short, DataManifest.parse(other.to_text()))


def test_a_pseudonym_is_all_that_an_owner_may_send() -> None:
    data = labelled()
    made = make_manifest(data, data, KEY, named=False)
    left = DataManifest.parse(without_data(made.to_text()))
    assert left == DataManifest(pseudonym=made.pseudonym)
    assert not left.has_form
    assert without_data(make_manifest(data, data, KEY).to_text()) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 5000,
        '{"examples": 17}',
        '{"examples": 3}',
        '{"examples": -16}',
        '{"class_counts": [16, 5]}',
        '{"format": 2}',
        '{"surprise": 1}',
        '{"fingerprint": "secret"}',
        '{"pseudonym": "bert"}',
        '{"labels": {"0": "\\u001b[31m"}}',
        '{"columns": [{"name": "\\u001b", "dtype": "x"}]}',
        '{"columns": [{"name": "' + "x" * 201 + '", "dtype": "x"}]}',
        '{"labels": {"a": "' + "x" * MOST_BYTES + '"}}',
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="data manifest"):
        DataManifest.parse(text)
