"""A trained model as two self-contained files: one with weights, frame and memory, one that describes them.

Written by the server at the end of a run, read by `fednc predict` and by users' own code through `load`. Only
safetensors and JSON, never pickle, so opening a model runs none of its author's code. Finds tasks by name.

    model/model.safetensors   model.* (shared part of the state dict), frame.etf_KD, memory.*
    model/model.json          format, run, class names, preprocessing, frame digest, sha256 of the other file

Legend: B batch, C current classes, D feature width, K label space.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from fednc.common.config.run import RunConfig, explain
from fednc.common.errors import DataError, ProtocolError
from fednc.common.files import private_folder, write_atomically
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import Frame
from fednc.common.learning.round_context import Guide
from fednc.common.peer_text import one_line
from fednc.common.tasks import adapters, discovery
from fednc.common.tasks.api import Task
from fednc.common.tasks.round_guide import guide_of_model

FOLDER, WEIGHTS, MANIFEST = "model", "model.safetensors", "model.json"


class ModelManifest(BaseModel):
    """Content of model.json. A change that older versions would misread needs a new `format`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    task_version: int
    run: RunConfig
    run_digest: str
    class_names: tuple[str, ...]
    preprocessing: dict[str, Any]
    frame_seed: int
    frame_sha256: str
    weights_sha256: str
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # see `common/tasks/temperature.py`


class ExportedModel(nn.Module):
    """A trained model with its read-out: preprocessed inputs in, scores of the current classes out.

    Attributes:
        task: the task it was trained for; `task.preprocessing()` says what inputs must look like.
        run: configuration of the run that trained it.
        class_names: name of each score.
        temperature: scores are divided by it, so that their softmax is a confidence one can count on.
    """

    etf_KD: Tensor
    mean_KD: Tensor
    seen_K: Tensor
    metric_DD: Tensor | None
    ridge_KD: Tensor | None
    ridge_K: Tensor | None

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        frame: Frame,
        memory: ClassMemory,
        class_names: tuple[str, ...],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.task = task
        self.run: RunConfig = task.run
        self.class_names, self.temperature = class_names, temperature
        self.model = model
        self.register_buffer("etf_KD", frame.etf_KD)
        self.register_buffer("mean_KD", memory.mean_KD)
        self.register_buffer("seen_K", memory.seen_K)
        self.register_buffer("metric_DD", memory.metric_DD)
        self.register_buffer("ridge_KD", memory.ridge_KD)
        self.register_buffer("ridge_K", memory.ridge_K)
        self.eval()

    @property
    def guide(self) -> Guide:
        """Frame and memory in the form that evaluation needs, on the device of this module."""
        memory = ClassMemory(
            mean_KD=self.mean_KD,
            seen_K=self.seen_K,
            metric_DD=self.metric_DD,
            ridge_KD=self.ridge_KD,
            ridge_K=self.ridge_K,
        )
        return guide_of_model(self.task, self.etf_KD, memory, len(self.class_names), self.temperature)

    def forward(self, inputs: Tensor) -> Tensor:
        """The task's prediction for preprocessed inputs.

        For a classifier, scores [B, C]: the argmax is the predicted class; `probabilities` makes confidences.
        Behind them are the task's further channels, if it has any.
        """
        found, further = self.task.predict(self.model, inputs, self.guide), self.task.further_channels
        if not self.class_names:
            return found
        shown = found[:, : len(self.class_names)]
        return torch.cat([shown, found[:, -further:]], dim=1) if further else shown

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities of the classes for scores [B, C, ...] of `forward`, which the temperature has divided."""
        return scores[:, : len(self.class_names)].float().softmax(dim=1)


def export(
    folder: Path,
    model: nn.Module,
    task: Task,
    frame: Frame,
    memory: ClassMemory,
    run: RunConfig,
    class_names: tuple[str, ...] | None = None,
    temperature: float = 1.0,
    *,
    with_local: bool = False,
) -> None:
    """Write model/model.safetensors and model/model.json in the run's folder `folder`.

    Adapters are merged into the weights, so that the model is an ordinary one. Each file is replaced in one step,
    the manifest last. A crash in between leaves a digest that does not match, which `load` refuses. So a model
    never mixes two runs.

    Args:
        class_names: the classes that the model knows; None: all classes of the task.
        temperature: what the scores are divided by.
        with_local: include tensors that a run never sends; for a client's own model.
    """
    model = task.inference_model(adapters.merged(model))
    state = model.state_dict()
    tensors = {
        **{f"model.{key}": state[key] for key in (state if with_local else task.shared_keys(model))},
        "frame.etf_KD": frame.etf_KD,
        **{f"memory.{key}": value for key, value in memory.to_tensors().items()},
    }
    # safetensors needs contiguous tensors that do not share memory
    weights = safetensors.torch.save(
        {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    )
    manifest = ModelManifest(
        task_version=task.version,
        run=run,
        run_digest=run.digest,
        class_names=task.class_names if class_names is None else class_names,
        preprocessing=task.preprocessing(),
        frame_seed=frame.seed,
        frame_sha256=frame.digest,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        temperature=temperature,
    )
    unused = {"temperature"} if temperature == 1 else set()  # earlier versions can then read the file
    private_folder(folder / FOLDER)
    write_atomically(folder / FOLDER / WEIGHTS, weights)
    write_atomically(
        folder / FOLDER / MANIFEST, (manifest.model_dump_json(indent=2, exclude=unused) + "\n").encode()
    )


def load(path: Path | str) -> ExportedModel:
    """The model of a run folder (`runs/<id>`) or of the folder that holds model.json, on the CPU, in eval mode.

    Raises:
        DataError: a file is missing, damaged, part of another model, or made by a newer version.
        ConfigError: the task that it was trained for is not installed here.
    """
    folder = _model_folder(Path(path))
    manifest = read_manifest(folder)
    tensors = _tensors(folder / WEIGHTS, manifest.weights_sha256)
    task = discovery.get(manifest.run)
    if task.version != manifest.task_version:
        raise DataError(
            f"{folder}: made by version {manifest.task_version} of task {task.name!r}, but version "
            f"{task.version} is installed. Use the version of fednc that made it."
        )
    model = task.inference_model(task.build_model())
    try:
        model.load_state_dict({**model.state_dict(), **_under("model.", tensors)})
        frame = Frame.without_vertices(task.run.frame.dim)
        if task.label_space:
            frame = Frame.from_tensor(tensors["frame.etf_KD"], manifest.frame_seed, manifest.frame_sha256)
        memory = ClassMemory.from_tensors(_under("memory.", tensors))
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError, ProtocolError) as e:
        raise DataError(
            f"{folder / WEIGHTS}: its tensors do not match {MANIFEST} ({one_line(e, 300)}). Export the run again."
        ) from e
    return ExportedModel(task, model, frame, memory, manifest.class_names, manifest.temperature)


def read_manifest(path: Path | str) -> ModelManifest:
    """What model.json says, of a run folder or of the folder that holds it. Raises DataError."""
    return _manifest(_model_folder(Path(path)) / MANIFEST)


def _model_folder(path: Path) -> Path:
    for folder in (path, path / FOLDER):
        if (folder / MANIFEST).is_file():
            return folder
    raise DataError(f"{path}: no {MANIFEST} in it or in its folder `model`; give the folder of a finished run")


def _manifest(path: Path) -> ModelManifest:
    try:
        return ModelManifest.model_validate_json(path.read_bytes())
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); export the run again") from e
    except ValidationError as e:
        raise DataError(f"{explain(e, str(path))}\nIt is damaged or was made by a newer version of fednc.") from e


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); export the run again") from e
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path}: sha256 is {found}, {MANIFEST} says {sha256}: it is damaged or from another run. Copy both "
            "files again."
        )
    try:
        return safetensors.torch.load(data)
    except Exception as e:  # any error of the parser means the same here
        raise DataError(f"{path}: not a safetensors file ({one_line(e, 300)}). Export the run again.") from e


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
