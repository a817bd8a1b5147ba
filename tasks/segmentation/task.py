"""The segmentation task: a classifier of pixels. Frame, class memory and read-outs work on pixels.

Found by name through `fednc.common.tasks`. An example is a picture, the members of a class are pixels. Must not
know servers, clients or the link.

Legend: B batch, C channels, H height, W width, D feature width, E width before the projection, K label space,
P labelled pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import Head, build_head
from fednc.common.learning.losses import objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Purpose, Suggestion, TaskData
from fednc.common.tasks.classifier import ClassifierModel, ClassifierTask, views_of
from fednc.common.tasks.file_names import file_stem
from fednc.common.tasks.metrics import Stats, refuse_unless
from fednc.tasks.dense import pictures
from fednc.tasks.dense.dataset import DenseBatch, DenseData, most_members, sampled
from fednc.tasks.dense.described import most_frequent
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.metrics import MeanIoU, PixelAccuracy, PixelLoss
from fednc.tasks.dense.models import UNet, deeplab, enlarged
from fednc.tasks.dense.preparation import read_data
from fednc.tasks.dense.suggest import suggest
from fednc.tasks.dense.task import DenseTask
from fednc.tasks.dense.tiles import in_tiles
from fednc.tasks.segmentation.ceco import COUNT, CentreBranch, rare_share
from fednc.tasks.segmentation.options import SegmentationOptions

BRANCH = "centres"  # the attribute of the model that holds CeCo's branch
IMAGES, PIXELS = "images_K", "pixels_K"  # sums of the data before round 1


class SegmentationModel(ClassifierModel):
    """Backbone to a feature map, projection of each pixel, head; in training also CeCo's branch, if it is on."""

    def __init__(
        self, backbone: nn.Module, projection: nn.Module, head: Head, branch: CentreBranch | None
    ) -> None:
        super().__init__(backbone, projection, head)
        self.centres = branch

    def features(self, inputs: Tensor) -> Tensor:
        """Features [B, H, W, D] of every pixel, not normalised.

        Projected before the map is enlarged to the picture's size. Both are linear, so the order does not matter.
        """
        deep_BEHW = self.backbone(inputs)
        small_BDHW = self.projection(deep_BEHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return enlarged(small_BDHW, inputs.shape[2:]).permute(0, 2, 3, 1)


class SegmentationTask(DenseTask, ClassifierTask):
    """Semantic segmentation. Batches are (normalised pictures [B, C, H, W], int64 labels [B, H, W])."""

    name = "segmentation"
    Options = SegmentationOptions
    metrics = ()  # they depend on the options; see __init__
    summary_metrics = ("miou_head", "miou_common", "miou_tail", "pixel_accuracy", "nc2_std")
    rehearses_with_frame = False
    options: SegmentationOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        options, pixels = self.options, self.options.size[0] * self.options.size[1]
        self.measured_by = (
            MeanIoU(pixels, options.common, options.tail),
            PixelAccuracy(pixels),
            PixelLoss(pixels),
        )
        if options.ceco and options.ceco_memory and not run.method.uses_memory:
            raise ConfigError(
                "task.ceco_memory mixes in the class memory, which this method does not collect: set "
                "method.readout to 'memory' or 'discriminant', or task.ceco_memory = 0"
            )

    # ---- classes ---------------------------------------------------------------------------------------------

    @property
    def members_per_example(self) -> int:
        """Pixels of a picture that sums of features are made of."""
        options = self.options
        return most_members(options.memory_pixels, self.label_space, options.size[0] * options.size[1])

    # ---- data ------------------------------------------------------------------------------------------------

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Keys of `[task]` for the pictures at `spec`. Raises DataError."""
        return suggest(spec)

    def read(self, spec: str, purpose: Purpose) -> DenseData:
        """The pictures at `spec`; for prediction also a picture file or a folder of them. Raises DataError."""
        data = read_data(spec, purpose, self.options, self.label_space)
        if purpose != "input" and not bool(data.pixel_count_NK.any()):
            raise DataError(
                f"{spec}: not one pixel has a label of this run's classes, so there is nothing to learn or judge. "
                "Give data with labels, or correct task.void (docs/segmentation.md)."
            )
        return data

    # ---- sums of the data before round 1 -----------------------------------------------------------------------

    def no_data_sums(self) -> Stats:
        """With CeCo: pictures and pixels of each class, for the class prior."""
        if not self.options.ceco:
            return {}
        return {name: torch.zeros(self.label_space, dtype=torch.int64) for name in (IMAGES, PIXELS)}

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """The counts; a class that fewer than `least` pictures have is left out."""
        assert isinstance(data, DenseData)
        images_K = data.having_K
        told_K = images_K >= least
        return {IMAGES: images_K * told_K, PIXELS: data.pixel_count_NK.sum(dim=0) * told_K}

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """A class is in at most all pictures, and has at least a pixel in each; pixels fit into the pictures."""
        images_K, pixels_K = sums[IMAGES], sums[PIXELS]
        most = announced * self.options.size[0] * self.options.size[1]
        refuse_unless(
            bool(((images_K >= 0) & (images_K <= announced)).all()), "more pictures of a class than there are"
        )
        refuse_unless(
            bool(((pixels_K >= images_K) & (pixels_K <= most)).all()), "pixels that do not fit the pictures"
        )
        refuse_unless(int(pixels_K.sum()) <= most, "more pixels than the pictures have")

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        """Write how many pictures have each class into CeCo's branch; without any answer they count equally."""
        branch = as_segmenter(model).centres
        assert branch is not None
        if bool(sums[IMAGES].any()):
            branch.image_count_K.copy_(sums[IMAGES])

    def aggregation(self, key: str) -> Aggregation:
        """The counts of CeCo's branch are fixed."""
        return Aggregation.FIXED if key == f"{BRANCH}.{COUNT}" else super().aggregation(key)

    # ---- model and training ----------------------------------------------------------------------------------

    def backbone(self) -> tuple[nn.Module, int]:
        """(layers from pictures to a feature map [B, E, H, W] of any smaller size, E)."""
        options = self.options
        if options.model == "unet":
            return UNet(options.channels, options.width), options.width
        return deeplab(options.backbone, options.norm, options.channels, options.width), options.width

    def build_model(self) -> SegmentationModel:
        """A new model. CeCo's branch draws from its own generator, so that the rest is the same without it."""
        backbone, width = self.backbone()
        projection = self.projection(width)
        head = build_head(self.run.method, self.run.frame.dim, self.label_space)
        return SegmentationModel(backbone, projection, head, self._branch())

    def _branch(self) -> CentreBranch | None:
        options = self.options
        if not options.ceco:
            return None
        return CentreBranch(
            self.label_space,
            self.run.frame.dim,
            self.run.seed,
            reduced=options.ceco_reduced,
            width=options.ceco_width,
            scale=options.ceco_scale,
            dropout=options.ceco_dropout,
            trainable=options.ceco_trainable,
            relu=options.ceco_relu,
            norm=options.ceco_norm,
        )

    def inference_model(self, model: nn.Module) -> nn.Module:
        """The model without CeCo's branch; shares its parameters."""
        found = copy.copy(as_segmenter(model))
        found._modules = {**found._modules, BRANCH: None}
        return found

    def loss(self, model: nn.Module, batch: DenseBatch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `guide.method` over the labelled pixels, and CeCo's over the classes among them."""
        inputs, label_BHW = batch
        found, keep_BHW = as_segmenter(model), label_BHW != VOID
        feat_BHWD = found.features(inputs)
        if not keep_BHW.any():
            return feat_BHWD.sum() * 0.0, {}
        feat_PD, label_P = feat_BHWD[keep_BHW], label_BHW[keep_BHW]
        views = views_of(guide, lambda model: model.features(inputs)[keep_BHW])
        total, parts = objective(feat_PD, label_P, found.head, guide, None, views)
        if found.centres is not None:
            term = self.options.ceco * found.centres(feat_PD, label_P, *self._memory(guide))
            total, parts = total + term, {**parts, "ceco": term.detach()}
        return total, parts

    def _memory(self, guide: Guide) -> tuple[Tensor | None, Tensor | None]:
        """(class memory, its share in the centre of each class), as far as the run mixes it in."""
        share = self.options.ceco_memory
        if not share:
            return None, None
        return guide.mean_KD, rare_share(guide.count_K, guide.seen_K, share, self.options.ceco_rare)

    # ---- features and read-out -------------------------------------------------------------------------------

    def embed(self, model: nn.Module, batch: DenseBatch) -> tuple[Tensor, Tensor]:
        """(unit features [P, D], labels [P]) of the pixels that sums of features are made of."""
        return self.aligned(model, batch)

    def aligned(self, model: nn.Module, batch: DenseBatch) -> tuple[Tensor, Tensor]:
        """As `embed`: the memory is in the frame's space."""
        inputs, label_BHW = batch
        place_P = sampled(label_BHW, self.label_space, self.options.memory_pixels)
        feat_BHWD = as_segmenter(model).features(inputs)
        return unit(feat_BHWD.flatten(0, 2)[place_P]), label_BHW.flatten()[place_P]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K, H, W], -inf beyond the current classes; large pictures go in tiles."""
        found = as_segmenter(model)

        def compute(pixel_BCHW: Tensor) -> Tensor:
            feat_BHWD = found.features(pixel_BCHW)
            score_PK = readout_logits(feat_BHWD.flatten(0, 2), found.head, guide, self._classes_in(guide))
            return score_PK.reshape(*feat_BHWD.shape[:3], -1).permute(0, 3, 1, 2)

        if not self.options.tile:
            return compute(inputs)
        return in_tiles(compute, inputs, self.options.tile, self.options.overlap)

    def outputs(self, model: nn.Module, batch: DenseBatch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(scores [B, K, H, W], labels [B, H, W])."""
        return self.scores(model, self.inputs_of(batch), guide).float(), batch[1]

    # ---- for people ------------------------------------------------------------------------------------------

    @property
    def predicts_at_own_size(self) -> bool:
        """With `tile`."""
        return self.options.tile > 0

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """For each picture its most frequent classes with their shares of the pixels, and the mean confidence."""
        return most_frequent(output, self.class_names)

    def prediction_files(self, batch: DenseBatch, output: Tensor, names: Sequence[str]) -> Mapping[str, bytes]:
        """For each picture an overlay, and the predicted labels as a palette-free PNG of class numbers."""
        files = {}
        for number, name in enumerate(names):
            stem = file_stem(name)
            guess_HW = output[number].argmax(dim=0).byte().cpu().numpy()
            files[f"{stem}-overlay.png"] = pictures.as_png(self._page(batch, number, guess_HW))
            files[f"{stem}-labels.png"] = pictures.as_png(Image.fromarray(guess_HW))
        return files

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """`pictures.png`: test pictures, evenly chosen, with prediction, truth and mistakes."""
        assert isinstance(data, DenseData)
        chosen = pictures.evenly_chosen(data.examples)
        pages = []
        for batch in data.select(chosen).eval_batches(1):
            guess_HW = self.scores(model, batch[0], guide)[0].argmax(dim=0).byte().cpu().numpy()
            pages.append(self._page(batch, 0, guess_HW))
        return {"pictures.png": pictures.as_png(pictures.sheet(pages))}

    def _page(self, batch: DenseBatch, number: int, guess_HW: pictures.Bytes) -> Image.Image:
        pixel_HW3 = pictures.as_bytes(batch[0][number], self.options.mean, self.options.std)
        truth_HW = batch[1][number].byte().cpu().numpy()
        return pictures.overlay(pixel_HW3, guess_HW, truth_HW, self.class_names)


def as_segmenter(model: nn.Module) -> SegmentationModel:
    """`model`, which must come from `build_model` of this task."""
    assert isinstance(model, SegmentationModel)
    return model
