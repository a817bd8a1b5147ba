"""Colours for line art after a reference picture, with an adversary that stays on the client; no classes.

Base of the task without a region head (`task.py`) and with one (`regions.py`): data, networks, two optimisers,
evaluation, pictures. Must not know servers, clients or the link.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection, TrainSection
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Part, Purpose, Stepper, Suggestion, Task, TaskData, split_with
from fednc.common.tasks.metrics import Metric
from fednc.common.tasks.request_forms import RequestForm, preprocessed
from fednc.common.tasks.splits import split_digest, split_index
from fednc.tasks.colorize import pictures
from fednc.tasks.colorize.dataset import ColourBatch, ColourData, as_unit, packed
from fednc.tasks.colorize.losses import adversary_loss, generator_loss
from fednc.tasks.colorize.metrics import L1, SSIM, ColourError, FDRand
from fednc.tasks.colorize.network import LINE, REFERENCE, Adversary, Generator, token_grid
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources import select
from fednc.tasks.colorize.suggest import suggested
from fednc.tasks.dense.pictures import as_png, evenly_chosen

GENERATOR, ADVERSARY = "generator", "adversary"  # attributes of the model, and names of its optimisers
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ColourModel(nn.Module):
    """Generator and adversary. Calling the model colours a picture; without the adversary it only predicts."""

    def __init__(self, options: ColorizeOptions) -> None:
        super().__init__()
        self.generator = Generator(options)
        self.adversary = Adversary(options.adversary_widths)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, 3, H, W], -1 to 1."""
        found: Tensor = self.generator(inputs)
        return found


@dataclass(frozen=True)
class Painted:
    """A batch with what the generator has made of it, so that both losses share one forward pass."""

    batch: ColourBatch
    made_B3HW: Tensor
    fused_BChw: Tensor


class ColourTask(Task):
    """Colours for line art after a reference picture. Batches: see `ColourData`."""

    name = "colorize"
    body = f"{GENERATOR}."
    Options = ColorizeOptions
    options: ColorizeOptions
    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = (L1, SSIM, FDRand, ColourError)
    summary_metrics = ("ssim", "fd_rand", "colour_error", "colour_error_own")
    examples_each_round = True

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        regions = self.options.classes
        if not regions and run.evaluate.metric == ColourError.name:
            raise ConfigError("evaluate.metric: colour_error is of regions, so name them in task.classes")
        self.measured_by = (L1(), SSIM(), FDRand(), *((ColourError(regions),) if regions else ()))

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Keys that fit the pictures at `spec`. Raises DataError."""
        return suggested(spec)

    # ---- data ------------------------------------------------------------------------------------------------

    def read(self, spec: str, purpose: Purpose) -> ColourData:
        """The pictures at `spec`. Raises DataError."""
        pairs = select.read(spec, purpose, self.options, self.run.evaluate.test_share)
        if pairs.region_NHW is None and self.options.classes and purpose != "input":
            raise DataError(
                f"{spec}: has no regions, but task.classes names {len(self.options.classes)}. Add a region map to "
                "each picture, or leave out task.classes."
            )
        if pairs.region_NHW is not None and purpose != "input":
            pairs = replace(pairs, notes=(*pairs.notes, _regions(pairs.region_NHW, self.options.classes, spec)))
        return ColourData(
            pairs=pairs,
            warp=self.options.warp,
            label_space=self.label_space,
            grid=token_grid(self.options),
        )

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training pictures at `spec`, or one part of them. A simulated split is skewed by artist."""
        data = self.read(spec, "train")
        if part is None:
            return data
        return data.select(split_index(data.artist_N, split_with(part, split))[part.index])

    def load_test(self, spec: str) -> TaskData:
        """See Task."""
        return self.read(spec, "test")

    def load_input(self, spec: str) -> TaskData:
        """Pictures to colour: line art with references, or pairs."""
        return self.read(spec, "input")

    def make_split(self, spec: str, split: SplitSection) -> str:
        """See Task."""
        return split_digest(split_index(self.read(spec, "train").artist_N, split))

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """Lines, colours, references and regions."""
        assert isinstance(train, ColourData)
        assert isinstance(test, ColourData)
        return packed(train, test, self.options.classes)

    def preprocessing(self) -> dict[str, Any]:
        """Line art and reference as four channels of -1 to 1."""
        return {
            "channels": ["line art, white paper", "reference red", "reference green", "reference blue"],
            "size": list(self.options.size),
            "range": [-1.0, 1.0],
            "output": "red, green and blue of the coloured picture, -1 to 1",
        }

    def request_forms(self) -> tuple[RequestForm, ...]:
        """Prepared line art and references."""
        return (preprocessed((4, *self.options.size)),)

    # ---- what stays at home ------------------------------------------------------------------------------------

    def aggregation(self, key: str) -> Aggregation:
        """The adversary never leaves the client, nor do the statistics of references if the run file says so."""
        options = self.options
        if key.startswith(f"{ADVERSARY}.") and options.adversary == "local":
            return Aggregation.LOCAL
        of_references = key.startswith(f"{self.body}reference.") and key.endswith(_STATISTICS)
        if of_references and options.local_statistics:
            return Aggregation.LOCAL
        return super().aggregation(key)

    def kept_optimisers(self) -> frozenset[str]:
        """That of an adversary that stays at home."""
        return frozenset({ADVERSARY}) if self.options.adversary == "local" else frozenset()

    # ---- model and training ----------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Generator and adversary."""
        return ColourModel(self.options)

    def inference_model(self, model: nn.Module) -> nn.Module:
        """The model without the adversary; shares its parameters."""
        found = copy.copy(model)
        found._modules = {name: part for name, part in model._modules.items() if name != ADVERSARY}
        return found

    def optimiser_parts(self, model: nn.Module) -> Mapping[str, Sequence[nn.Parameter]]:
        """The adversary has its own; everything else is the generator's."""
        parts: dict[str, list[nn.Parameter]] = {ADVERSARY: [], GENERATOR: []}
        for name, param in model.named_parameters():
            parts[ADVERSARY if name.startswith(f"{ADVERSARY}.") else GENERATOR].append(param)
        return parts

    def optimiser_section(self, part: str, section: TrainSection) -> TrainSection:
        """The adversary's rate is a multiple of the generator's."""
        if part != ADVERSARY:
            return section
        return section.model_copy(update={"lr": section.lr * self.options.adversary_rate})

    def training_step(
        self, model: nn.Module, batch: ColourBatch, guide: Guide, trainer: Stepper
    ) -> dict[str, Tensor]:
        """A step of the adversary, then one of the generator, on the same pictures."""
        painted = self.painted(model, batch)
        inputs, truth, *_ = batch
        judged = adversary_loss(adversary_of(model), inputs[:, LINE], truth, painted.made_B3HW.detach())
        trainer.descend(judged, ADVERSARY)
        loss, parts = trainer.loss(model, painted, guide)
        trainer.descend(loss, GENERATOR)
        return {"loss": loss.detach(), **parts, ADVERSARY: judged.detach()}

    def painted(self, model: nn.Module, batch: ColourBatch) -> Painted:
        """The batch with the generator's pictures of it, in the run's precision."""
        inputs, generator = batch[0], generator_of(model)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16"):
            fused, skips = generator.fused(inputs)
            made = generator.painted(fused, skips)
        return Painted(batch, made.float(), fused.float())

    def loss(
        self, model: nn.Module, batch: ColourBatch | Painted, guide: Guide
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the generator minimises."""
        del guide
        painted = batch if isinstance(batch, Painted) else self.painted(model, batch)
        inputs, truth, *_ = painted.batch
        with torch.autocast(inputs.device.type, enabled=False):
            return generator_loss(self.options, adversary_of(model), inputs[:, LINE], truth, painted.made_B3HW)

    # ---- evaluation ------------------------------------------------------------------------------------------

    def outputs(self, model: nn.Module, batch: ColourBatch, guide: Guide) -> tuple[Tensor, Tensor]:
        """What the metrics judge, of the pictures whose colours are known; see `metrics.py`."""
        del guide
        return self.judged(model, batch)

    def judged(self, model: nn.Module, batch: ColourBatch) -> tuple[Tensor, Tensor]:
        """Results with the true picture and with another one as the reference; and what they should be."""
        known_B = ~batch[1].isnan().flatten(1).any(dim=1)
        inputs, truth, region, other = (each[known_B] for each in batch)
        if not len(truth):
            return inputs.new_zeros(0, 6, *inputs.shape[2:]), inputs.new_zeros(0, 8, *inputs.shape[2:])
        generator = generator_of(model)
        own = generator(torch.cat([inputs[:, LINE], truth], dim=1))
        made = torch.cat([own, generator(inputs)], dim=1)
        target = torch.cat([as_unit(truth), as_unit(inputs[:, REFERENCE]), region[:, None], other[:, None]], dim=1)
        return as_unit(made.float()), target

    def predict(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """The coloured pictures [B, 3, H, W], -1 to 1."""
        del guide
        found: Tensor = generator_of(model)(inputs)
        return found

    # ---- for people ------------------------------------------------------------------------------------------

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """The mean colour of each picture."""
        mean_B3 = (as_unit(output.float()).mean(dim=(2, 3)) * 255).round().long().tolist()
        return [{"mean colour": "#{:02x}{:02x}{:02x}".format(*colour)} for colour in mean_B3]

    def prediction_files(self, batch: ColourBatch, output: Tensor, names: Sequence[str]) -> Mapping[str, bytes]:
        """For each picture the coloured one alone, and beside its line art and reference."""
        files = {}
        for number, name in enumerate(names):
            stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in name.rsplit("/", 1)[-1])
            line, reference = batch[0][number, LINE], batch[0][number, REFERENCE]
            row = [pictures.pixels(each) for each in (line, reference, output[number])]
            files[f"{stem}-coloured.png"] = as_png(Image.fromarray(row[2]))
            files[f"{stem}-beside.png"] = as_png(pictures.table(("line art", "reference", "result"), [row]))
        return files

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """`colours.png`: test pictures, with line art, reference, result, truth, and result from the truth."""
        del guide
        assert isinstance(data, ColourData)
        chosen = evenly_chosen(data.examples)
        generator, rows = generator_of(model), []
        for inputs, truth, *_ in data.select(chosen).eval_batches(1):
            own = generator(torch.cat([inputs[:, LINE], truth.nan_to_num(0.0)], dim=1))
            row = (inputs[0, LINE], inputs[0, REFERENCE], generator(inputs)[0], truth[0], own[0])
            rows.append([pictures.pixels(each) for each in row])
        titles = ("line art", "reference", "result", "truth", "from the truth")
        return {"colours.png": as_png(pictures.table(titles, rows))}


def _regions(region_NHW: Tensor, names: Sequence[str], spec: str) -> str:
    """A note on how many pictures have each region. Raises DataError: none has any."""
    having = [int((region_NHW == number).flatten(1).any(dim=1).sum()) for number in range(len(names))]
    if not any(having):
        raise DataError(
            f"{spec}: not one pixel has a region, but task.classes names {len(names)}. Label some, or leave out "
            "task.classes."
        )
    return "pictures with each region: " + ", ".join(f"{name} {n}" for name, n in zip(names, having, strict=True))


def generator_of(model: nn.Module) -> Generator:
    """The generator of a model of this task."""
    found = getattr(model, GENERATOR)
    assert isinstance(found, Generator)
    return found


def adversary_of(model: nn.Module) -> Adversary:
    """The adversary of a model of this task that trains."""
    found = getattr(model, ADVERSARY)
    assert isinstance(found, Adversary)
    return found
