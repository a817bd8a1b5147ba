"""What an exported model says about itself: its input, outputs and classes, and where it comes from.

The same values are in an ONNX file's metadata, in a .pt2 file, beside the safetensors file and on the card. No
names of clients, no paths, nothing from [server].
"""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ConfigDict

from fednc.common.model_export import ExportedModel, ModelManifest
from fednc.ops.export.graph import output_names


class InputDescription(BaseModel):
    """The input of the graph. A batch of examples has the shape [B, *shape]."""

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    shape: tuple[int, ...]
    note: str


class Description(BaseModel):
    """Everything that a user of the exported model must know."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    made_by: str
    task: str
    task_version: int
    class_names: tuple[str, ...]
    temperature: float
    input: InputDescription
    outputs: tuple[str, ...]
    preprocessing: dict[str, Any]
    task_options: dict[str, Any]
    method: str
    readout: str
    feature_width: int
    run: str
    seed: int
    rounds: int
    config_sha256: str
    frame_sha256: str
    weights_sha256: str

    def texts(self) -> dict[str, str]:
        """Each value as text: strings as they are, everything else as JSON."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in self.model_dump(mode="json").items()
        }


def describe(
    exported: ExportedModel,
    shape: tuple[int, ...],
    rounds: int,
    dtype: str = "",
    manifest: ModelManifest | None = None,
) -> Description:
    """The description of a model that takes inputs of `shape` and was trained for `rounds` rounds.

    Args:
        dtype: of the inputs, if it is not the one that the task names.
        manifest: of the model's files, for their checksum; None: there are no files.
    """
    run, given = exported.run, exported.task.graph_input()
    return Description(
        made_by=f"fednc {metadata.version('fednc')}",
        task=exported.task.name,
        task_version=exported.task.version,
        class_names=exported.class_names,
        temperature=exported.temperature,
        input=InputDescription(
            name=given.name, dtype=dtype or str(given.dtype).removeprefix("torch."), shape=shape, note=given.note
        ),
        outputs=output_names(exported),
        preprocessing=exported.task.preprocessing(),
        task_options=run.chosen_task,
        method=run.method.name,
        readout=run.method.readout if exported.class_names else "",
        feature_width=run.frame.dim,
        run=run.name,
        seed=run.seed,
        rounds=rounds,
        config_sha256=run.digest,
        frame_sha256=manifest.frame_sha256 if manifest else "",
        weights_sha256=manifest.weights_sha256 if manifest else "",
    )
