"""The task with a region head: tokens of a picture are told apart by the frozen frame, with class memory.

Chosen by `ColorizeTask.for_run` where `task.region_weight` is above 0. An example is a picture, the members of a
class are tokens. Must not know servers, clients or the link.

Legend: B batch, C channels, D feature width, K regions, T labelled tokens, h and w sides of the token grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import Head, build_head
from fednc.common.learning.losses import objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.classifier import ClassifierModel, ClassifierTask, as_classifier, views_of
from fednc.common.tasks.metric_info import PERCENT
from fednc.common.tasks.metrics import EXAMPLES, Metric, Stats, count_zeros, refuse_unless
from fednc.tasks.colorize.colour_task import ColourTask, Painted
from fednc.tasks.colorize.dataset import ColourBatch, at_tokens
from fednc.tasks.colorize.network import Adversary, Generator, token_channels, token_grid
from fednc.tasks.colorize.options import ColorizeOptions


class RegionColourModel(ClassifierModel):
    """Generator as the backbone, with projection and head of its tokens; and the adversary."""

    def __init__(self, options: ColorizeOptions, projection: nn.Module, head: Head) -> None:
        super().__init__(Generator(options), projection, head)
        self.adversary = Adversary(options.adversary_widths)

    @property
    def generator(self) -> nn.Module:
        """The generator, by the name that it has in the model without regions."""
        return self.backbone

    def features(self, inputs: Tensor) -> Tensor:
        """Features [B, h, w, D] of every token, not normalised."""
        assert isinstance(self.backbone, Generator)
        return self.projected(self.backbone.fused(inputs)[0])

    def projected(self, fused_BChw: Tensor) -> Tensor:
        """[B, h, w, D] of the generator's tokens."""
        found: Tensor = self.projection(fused_BChw.permute(0, 2, 3, 1))
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """The coloured picture [B, 3, H, W], -1 to 1."""
        found: Tensor = self.backbone(inputs)
        return found


class RegionAccuracy(Metric):
    """Share of tokens whose region the head tells."""

    name, unit = "region_accuracy", PERCENT

    def __init__(self, most_tokens: int) -> None:
        """`most_tokens`: of a picture; more in the sums of a client are refused."""
        self._most_tokens = most_tokens

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {"region_count": count_zeros(), "region_hits": count_zeros()}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """Of scores [B, K, h, w] and labels [B, h, w], `NO_REGION` where there is none."""
        known = target < output.shape[1]
        hits = (output.argmax(dim=1) == target) & known
        return {"region_count": known.sum(), "region_hits": hits.sum()}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        count = int(sums["region_count"])
        return int(sums["region_hits"]) / count if count else float("nan")

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        hits, count, most = int(sums["region_hits"]), int(sums["region_count"]), examples * self._most_tokens
        refuse_unless(
            0 <= hits <= count <= most, f"{hits} of {count} tokens right, {examples} pictures have {most}"
        )


class RegionColorizeTask(ColourTask, ClassifierTask):
    """Colours for line art, with a head that tells regions apart."""

    body = "backbone."
    rehearses_with_frame = False
    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = ColourTask.metrics

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.colours, self.regions = self.measured_by, RegionAccuracy(self.members_per_example)
        self.measured_by = (*self.colours, self.regions)

    @property
    def members_per_example(self) -> int:
        """Tokens of a picture."""
        height, width = token_grid(self.options)
        return height * width

    def backbone(self) -> tuple[nn.Module, int]:
        """(the generator, C)."""
        return Generator(self.options), token_channels(self.options)

    def build_model(self) -> RegionColourModel:
        """Generator, adversary, projection and head."""
        projection = self.projection(token_channels(self.options))
        head = build_head(self.run.method, self.run.frame.dim, self.label_space)
        return RegionColourModel(self.options, projection, head)

    def loss(
        self, model: nn.Module, batch: ColourBatch | Painted, guide: Guide
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the generator minimises, and the weighted loss of the regions of its tokens."""
        painted = batch if isinstance(batch, Painted) else self.painted(model, batch)
        total, parts = super().loss(model, painted, guide)
        found = _as_regions(model)
        label_Bhw = self._labels(painted.batch)
        known_Bhw = label_Bhw < self.label_space
        if not bool(known_Bhw.any()):
            return total, parts
        inputs = painted.batch[0]
        views = views_of(guide, lambda model: model.features(inputs)[known_Bhw])
        feat_TD = found.projected(painted.fused_BChw)[known_Bhw]
        region, more = objective(feat_TD, label_Bhw[known_Bhw], found.head, guide, None, views)
        weight = self.options.region_weight
        named = {f"region {name}": weight * value for name, value in more.items()}
        return total + weight * region, {**parts, **named}

    def _labels(self, batch: ColourBatch) -> Tensor:
        return at_tokens(batch[2], token_grid(self.options))

    def embed(self, model: nn.Module, batch: ColourBatch) -> tuple[Tensor, Tensor]:
        """(unit features [T, D], labels [T]) of the tokens with a region."""
        return self.aligned(model, batch)

    def aligned(self, model: nn.Module, batch: ColourBatch) -> tuple[Tensor, Tensor]:
        """As `embed`: the memory is in the frame's space."""
        label_Bhw = self._labels(batch)
        known_Bhw = label_Bhw < self.label_space
        return unit(_as_regions(model).features(batch[0])[known_Bhw]), label_Bhw[known_Bhw]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K, h, w] of the tokens."""
        found = _as_regions(model)
        feat_BhwD = found.features(inputs)
        score_TK = readout_logits(feat_BhwD.flatten(0, 2), found.head, guide, self._classes_in(guide))
        return score_TK.reshape(*feat_BhwD.shape[:3], -1).permute(0, 3, 1, 2)

    def outputs(self, model: nn.Module, batch: ColourBatch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(scores [B, K, h, w], regions [B, h, w])."""
        return self.scores(model, batch[0], guide).float(), self._labels(batch)

    def statistics(self, model: nn.Module, batch: ColourBatch, guide: Guide) -> Stats:
        """The sums of the colours' metrics and of the regions'."""
        output, target = self.judged(model, batch)
        found = {EXAMPLES: torch.tensor(len(target))}
        for metric in self.colours:
            found |= metric.sums(output, target)
        found |= self.regions.sums(*self.outputs(model, batch, guide))
        return {name: value.cpu() for name, value in found.items()}


def _as_regions(model: nn.Module) -> RegionColourModel:
    found = as_classifier(model)
    assert isinstance(found, RegionColourModel)
    return found
