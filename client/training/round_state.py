"""The state that a client keeps between its rounds, for methods and tasks that need one.

Stored in Flower's `context.state`, which belongs to one node in one run and outlives messages on every engine.
With a state folder (`fednc client --state`) it is also on disk and survives a restart. Without one it is lost when
the client's process ends, and method and task start again without state.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from flwr.app import RecordDict
from torch import Tensor

from fednc.common.files import private_folder, write_atomically
from fednc.common.wire import arrays

KEPT = "kept"  # kind of state: the tensors of the model that a task keeps on the client
OPTIMISERS = "optimisers"  # and the state of the optimisers that it keeps
_ENDING = ".safetensors"
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEPT_RUNS = 16  # state of earlier runs is deleted: each is up to twice as large as the model

log = logging.getLogger("fednc.client")


class Past:
    """Tensors by kind and round. A round that runs twice starts both times from the state of the round before.

    What a round wrote is read later only if the server counted the round's reply: a client whose reply was lost or
    came too late continues from the last round that counts it.
    """

    def __init__(
        self,
        state: RecordDict,
        server_round: int,
        folder: Path | None = None,
        accepted: int | None = None,
        *,
        or_later: bool = False,
    ) -> None:
        """The state of one client in `server_round`.

        Args:
            folder: this client's state of this run on disk; it is read if `state` is empty.
            accepted: the last round that counts this client's reply, 0: none; None: the server does not say.
            or_later: read the earliest state that is left if those of the rounds before are deleted. For a run
                that ends with the model of an earlier round: later local tensors fit it better than new ones.
        """
        self._or_later = or_later
        self._state, self._round, self._folder, self._accepted = state, server_round, folder, accepted
        if folder is not None and not state.array_records and folder.is_dir():
            for path in sorted(folder.glob(f"*{_ENDING}")):
                self._recall(path)

    def read(self, kind: str) -> dict[str, Tensor]:
        """The tensors of this client's last round that counts; empty before its first. Do not change in place."""
        earlier, rounds = self._earlier(kind), self._rounds(kind)
        if not earlier and not (rounds and self._or_later):
            return {}
        return arrays.from_record(self._state.array_records[_name(kind, max(earlier, default=min(rounds)))])

    def write(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Store `tensors` for later rounds. Deletes all rounds except this one and the one it started from.

        Raises:
            ValueError: `kind` cannot be part of a file's name.
        """
        if not _KIND.fullmatch(kind):
            raise ValueError(
                f"{kind[:80]!r}: the kind of a client's state has 1 to 64 letters, digits, '-' and '_'"
            )
        keep = {self._round, *sorted(self._earlier(kind))[-1:]}
        for number in self._rounds(kind):
            if number not in keep:
                del self._state[_name(kind, number)]
                if self._folder is not None:
                    self._path(self._folder, kind, number).unlink(missing_ok=True)
        self._state[_name(kind, self._round)] = arrays.to_record(tensors)
        if self._folder is not None:
            if not self._folder.is_dir():
                private_folder(self._folder)
                _delete_oldest(self._folder)
            plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            write_atomically(self._path(self._folder, kind, self._round), safetensors.torch.save(plain))

    def _recall(self, path: Path) -> None:
        """Read one file. A damaged file is skipped; the run goes on without its content."""
        kind, _, number = path.name.removesuffix(_ENDING).rpartition(".")
        try:
            self._state[_name(kind, int(number))] = arrays.to_record(safetensors.torch.load(path.read_bytes()))
        except Exception as e:
            log.warning("%s cannot be read and is ignored: %s", path, e)

    @staticmethod
    def _path(folder: Path, kind: str, number: int) -> Path:
        return folder / f"{kind}.{number}{_ENDING}"

    def _earlier(self, kind: str) -> list[int]:
        end = self._round if self._accepted is None else min(self._round, self._accepted + 1)
        return [number for number in self._rounds(kind) if number < end]

    def _rounds(self, kind: str) -> list[int]:
        names = (name.rpartition("/") for name in self._state.array_records)
        return [int(number) for found, _, number in names if found == kind]


def folder_of(place: Path, run: int, name: str) -> Path:
    """The folder of one run's state of the client `name`, in the client's state folder."""
    return place / f"{run}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _delete_oldest(newest: Path) -> None:
    """Keep only the last runs of the client to which `newest` belongs, so that no server can fill its disk."""
    _, _, who = newest.name.rpartition("-")
    mine = [path for path in newest.parent.glob(f"*-{who}") if path.is_dir() and path != newest]
    for path in sorted(mine, key=lambda path: path.stat().st_mtime_ns)[: 1 - KEPT_RUNS]:
        log.info("%s: deleted, because the state of only %d runs is kept", path, KEPT_RUNS)
        shutil.rmtree(path, ignore_errors=True)


def _name(kind: str, number: int) -> str:
    return f"{kind}/{number}"
