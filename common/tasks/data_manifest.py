"""What a client says about its data for the history of models: form, label map, rough counts, a fingerprint.

Made on the client, checked by the server, kept with every registered model. The data itself stays on the client.
A change of `form_digest` makes a new version of the data.

Legend: N examples.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.peer_text import is_plain
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.data_column import DataColumn, Text

MOST_BYTES = 16 << 10  # of a manifest as JSON
SMALLEST_BUCKET = 16  # a count from 1 to 16 is given as 16
_BATCH = 256
_MODULUS = 1 << 256


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("contains control characters")
    return text


Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


def bucket(count: int) -> int:
    """`count` rounded up to a power of two, and at least to `SMALLEST_BUCKET`; 0 stays 0."""
    return 0 if count <= 0 else max(SMALLEST_BUCKET, 1 << (count - 1).bit_length())


class DataManifest(BaseModel):
    """What one client says about its data.

    Attributes:
        columns: what an example consists of.
        labels: the data's own labels and the class that each stands for; empty if the data names its classes.
        labels_sha256: digest of the label map; given instead of one that is too long.
        columns_sha256: the same for the columns.
        examples, held_out, class_counts: see `bucket`.
        fingerprint: changes with the data. It is keyed, and the key never leaves the client, so nobody else can
            check a guess about the data. Empty if the client has no place to keep a key.
        pseudonym: the name to show in the history of models; empty: the client's own name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    columns: Annotated[tuple[DataColumn, ...], Field(max_length=4096)] = ()
    columns_sha256: Digest = ""
    labels: Annotated[dict[Text, Text], Field(max_length=4096)] = {}
    labels_sha256: Digest = ""
    examples: Annotated[int, Field(ge=0)] = 0
    held_out: Annotated[int, Field(ge=0)] = 0
    class_counts: Annotated[tuple[int, ...], Field(max_length=4096)] = ()
    fingerprint: Digest = ""
    pseudonym: Annotated[str, Field(pattern=r"^(client-[0-9a-f]{12})?$")] = ""

    @field_validator("examples", "held_out")
    @classmethod
    def _is_bucket(cls, count: int) -> int:
        if count > 1 << 40 or count != bucket(count):
            raise ValueError("expected 0 or a power of two from 16 on")
        return count

    @field_validator("class_counts")
    @classmethod
    def _are_buckets(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        for count in counts:
            cls._is_bucket(count)
        return counts

    @field_validator("columns")
    @classmethod
    def _columns_are_plain(cls, columns: tuple[DataColumn, ...]) -> tuple[DataColumn, ...]:
        for column in columns:
            _plain(column.name + column.dtype)
        return columns

    @field_validator("labels")
    @classmethod
    def _labels_are_plain(cls, labels: dict[str, str]) -> dict[str, str]:
        _plain("".join([*labels, *labels.values()]))
        return labels

    def to_text(self) -> str:
        """As JSON, at most `MOST_BYTES` long: of a long label map or list of columns only the digest is left."""
        text = self.model_dump_json(exclude_defaults=True)
        if len(text.encode()) <= MOST_BYTES:
            return text
        short = self.model_copy(update={"labels": {}, "labels_sha256": self._labels_digest})
        text = short.model_dump_json(exclude_defaults=True)
        if len(text.encode()) > MOST_BYTES:
            short = short.model_copy(update={"columns": (), "columns_sha256": self._columns_digest})
            text = short.model_dump_json(exclude_defaults=True)
        if len(text.encode()) > MOST_BYTES:
            text = short.model_copy(update={"class_counts": ()}).model_dump_json(exclude_defaults=True)
        return text

    @classmethod
    def parse(cls, text: str) -> Self:
        """The manifest in `text`, which anybody may have written. Raises ProtocolError."""
        if len(text.encode(errors="replace")) > MOST_BYTES:
            raise ProtocolError(f"the data manifest is longer than {MOST_BYTES} bytes")
        try:
            return cls.model_validate_json(text)
        except (ValidationError, RecursionError) as e:
            problem = f"{e.error_count()} problems" if isinstance(e, ValidationError) else "nested too deep"
            raise ProtocolError(f"the data manifest cannot be used: {problem}") from e

    @property
    def has_form(self) -> bool:
        """Whether it says what the data looks like, and not only under which name to list the client."""
        return bool(self.columns or self.columns_sha256)

    @property
    def form_digest(self) -> str:
        """sha256 over columns and label map: what must stay the same for a model to remain valid."""
        return _digest([self._columns_digest, self._labels_digest])

    @property
    def _columns_digest(self) -> str:
        return self.columns_sha256 or _digest([column.model_dump(mode="json") for column in self.columns])

    @property
    def _labels_digest(self) -> str:
        return self.labels_sha256 or _digest(self.labels)


def changes_between(old: DataManifest, new: DataManifest) -> list[str]:
    """How the form of the data differs, for people; empty if it does not."""
    if old.form_digest == new.form_digest:
        return []
    found = [*_column_changes(old, new), *_label_changes(old.labels, new.labels)]
    return found or ["columns or labels, known by their digest only"]


def _column_changes(old: DataManifest, new: DataManifest) -> Iterator[str]:
    before, after = ({column.name: column for column in each.columns} for each in (old, new))
    for name in before.keys() | after.keys():
        if name not in after:
            yield f"column {name!r} is gone"
        elif name not in before:
            yield f"column {name!r} is new"
        elif before[name] != after[name]:
            yield f"column {name!r} was {_described(before[name])} and is {_described(after[name])}"
    if list(before) != list(after) and before == after:
        yield "the columns have another order"


def _described(column: DataColumn) -> str:
    return f"{column.dtype}{list(column.shape)}"


def _label_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for label in sorted(old.keys() | new.keys()):
        if old.get(label) != new.get(label):
            yield f"label {label!r} was {old.get(label)!r} and is {new.get(label)!r}"


def make_manifest(train: TaskData, held_out: TaskData, key: bytes = b"", *, named: bool = True) -> DataManifest:
    """The manifest of a client's data.

    Args:
        key: for fingerprint and pseudonym; empty: no fingerprint, and a pseudonym for this run only.
        named: whether the history of models may name this client.
    """
    columns, labels = tuple(train.columns), dict(train.label_map)
    try:
        form = DataManifest(columns=columns, labels=labels)
    except ValidationError:  # more of them, or longer names, than a manifest takes
        listed = [column.model_dump(mode="json") for column in columns]
        form = DataManifest(columns_sha256=_digest(listed), labels_sha256=_digest(labels))
    return DataManifest(
        columns=form.columns,
        columns_sha256=form.columns_sha256,
        labels=form.labels,
        labels_sha256=form.labels_sha256,
        examples=bucket(train.examples),
        held_out=bucket(held_out.examples),
        class_counts=tuple(bucket(count) for count in train.count_K.tolist()),
        fingerprint=fingerprint((train, held_out), key) if key else "",
        pseudonym="" if named else pseudonym_of(key),
    )


def pseudonym_of(key: bytes) -> str:
    """The client's name in the history of models where its owner does not want its own name there."""
    return f"client-{hmac.digest(key, b'pseudonym', 'sha256').hex()[:12] if key else secrets.token_hex(6)}"


def without_data(text: str) -> str:
    """What is left of a manifest whose owner sends none: the pseudonym, or nothing."""
    pseudonym = DataManifest.parse(text).pseudonym if text else ""
    return DataManifest(pseudonym=pseudonym).to_text() if pseudonym else ""


def fingerprint(parts: Iterable[TaskData], key: bytes) -> str:
    """Hex digest over all examples in any order; empty if examples are not rows of tensors.

    The sum of a keyed hash of each example, so it does not depend on their order, nor on which are held out.
    """
    total, own = 0, hmac.digest(key, b"fingerprint of data", "sha256")
    for part in parts:
        for tensors in _rows_of(part):
            if not tensors:
                return ""
            for row in zip(*(_bytes_of(tensor) for tensor in tensors), strict=True):
                found = hashlib.blake2b(key=own, digest_size=32)
                for piece in row:
                    found.update(piece)
                total = (total + int.from_bytes(found.digest(), "big")) % _MODULUS
    return hmac.digest(own, total.to_bytes(32, "big"), "sha256").hex()


def _rows_of(data: TaskData) -> Iterator[tuple[Tensor, ...]]:
    if data.rows:
        yield data.rows
        return
    for batch in data.eval_batches(_BATCH):
        tensors = batch if isinstance(batch, tuple) else (batch,)
        is_rows = all(isinstance(each, Tensor) and each.ndim for each in tensors)
        yield tensors if is_rows and len({len(each) for each in tensors}) == 1 else ()


def _bytes_of(tensor: Tensor) -> Iterator[bytes]:
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    if flat.shape[1] == 0:
        return iter([b""] * len(tensor))
    return (row.tobytes() for row in flat.view(torch.uint8).numpy())


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
