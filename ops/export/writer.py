"""Writes an exported model into a folder: the wanted formats, and always a card. No file is ever half written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fednc.common.errors import ConfigError, DataError
from fednc.common.files import private_folder, write_atomically
from fednc.common.model_export import FOLDER, MANIFEST, load, read_manifest
from fednc.ops.export import card, formats, graph
from fednc.ops.export.description import describe
from fednc.ops.run_folders.folder import State, read_run

if TYPE_CHECKING:
    from torch import Tensor

    from fednc.common.model_export import ExportedModel

ONNX, PT2, WEIGHTS, WEIGHTS_JSON, CARD = (
    "model.onnx",
    "model.pt2",
    "weights.safetensors",
    "weights.json",
    "card.md",
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to export."""

    onnx: bool = False
    torch_export: bool = False
    safetensors: bool = False
    data: str = ""  # a data spec with an example, for a task that does not tell the shape of its inputs
    client_names: bool = False
    force: bool = False

    @property
    def files(self) -> list[str]:
        """The files that are written, in order."""
        chosen = ((self.onnx, [ONNX]), (self.torch_export, [PT2]), (self.safetensors, [WEIGHTS, WEIGHTS_JSON]))
        return [*(name for is_wanted, names in chosen if is_wanted for name in names), CARD]


def write(run: Path, output: Path, wanted: Wanted, tell: Callable[[str], None]) -> list[Path]:
    """Export the model of a run folder. `tell` hears what is being made, since some formats take seconds.

    Raises:
        DataError: there is no finished run in the folder, or its model is damaged.
        ConfigError: a file exists already, or the model cannot be exported in a format.
        MissingExtraError: a format needs the extra `export`.
    """
    _check_run(run)
    _check_output(output, wanted)
    exported, manifest = load(run), read_manifest(run)
    evidence = card.evidence_of(run, manifest)
    inputs = graph.sample_inputs(exported, _like(exported, wanted.data))
    rounds = len(evidence.history.rounds)
    dtype = str(inputs.dtype).removeprefix("torch.")
    description = describe(exported, tuple(inputs.shape[1:]), rounds, dtype, manifest)
    makers: dict[str, Callable[[], bytes]] = {
        ONNX: lambda: formats.to_onnx(exported, inputs, description),
        PT2: lambda: formats.to_torch_export(exported, inputs, description),
        WEIGHTS: lambda: formats.to_safetensors(exported, description),
        WEIGHTS_JSON: lambda: (description.model_dump_json(indent=2) + "\n").encode(),
        CARD: lambda: card.card(
            exported, manifest, description, evidence, _there(output, wanted), client_names=wanted.client_names
        ).encode(),
    }
    made = {}
    for name in wanted.files:  # all of them before the first is written
        tell(name)
        made[name] = makers[name]()
    private_folder(output)
    for name, content in made.items():
        write_atomically(output / name, content)
    return [output / name for name in made]


def _like(exported: ExportedModel, data: str) -> Tensor | None:
    """Raw inputs of one batch of `data`; None if there is no data."""
    if not data:
        return None
    examples = exported.task.load_input(data)
    batch = next(iter(examples.eval_batches(2)), None)
    if batch is None:
        raise DataError(f"--data {data}: it contains no example to take the shape of an input from")
    return exported.task.graph_input().raw_of(exported.task.inputs_of(batch))


def _there(output: Path, wanted: Wanted) -> Sequence[str]:
    """Every file of the folder that the card may speak of."""
    return [*wanted.files, *(name for name in (ONNX, PT2, WEIGHTS) if (output / name).is_file())]


def _check_run(run: Path) -> None:
    """Raises DataError, with the reason why there is no model."""
    if not run.is_dir():
        raise DataError(f"{run}: no such folder; give the folder of a finished run, runs/<id>")
    if (run / FOLDER / MANIFEST).is_file() or (run / MANIFEST).is_file():
        return
    found = read_run(run)
    if found.state in (State.FOREIGN, State.DAMAGED) or not found.config:
        raise DataError(f"{run}: no model in it; `fednc runs FOLDER` lists the runs in a folder")
    planned = f" of {found.planned}" if found.planned else ""
    hint = (
        "wait until it ends"
        if found.state is State.RUNNING
        else (f"continue it with `fednc server RUN.toml --folder {run}`, or export another run")
    )
    raise DataError(f"{run}: the run is not finished (round {found.done}{planned}, {found.state}): {hint}")


def _check_output(output: Path, wanted: Wanted) -> None:
    """Raises ConfigError if a file would be replaced."""
    there = [name for name in wanted.files if (output / name).exists()]
    formats_there = [name for name in there if name != CARD] or (there if wanted.files == [CARD] else [])
    if formats_there and not wanted.force:
        raise ConfigError(
            f"{output} already has {', '.join(formats_there)}: choose another folder with --output, or "
            "replace with --force"
        )
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; give a folder")
