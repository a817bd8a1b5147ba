"""The task of panoptic segmentation with parts: queries of things, stuff and parts against one frozen frame.

Found by name through `fednc.common.tasks`. An example is a picture, the members of a class are queries. Must not
know servers, clients or the link.

Legend: B batch, D width of the frame's space, H height, W width, h and w height and width of the masks, K columns
(label space), N queries, Q thing queries, T stages, X rows (queries of stages and pictures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import build_head, logits
from fednc.common.learning.losses import objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Part, Purpose, Suggestion, TaskData
from fednc.common.tasks.classifier import ClassifierModel, ClassifierTask, views_of
from fednc.common.tasks.file_names import file_stem
from fednc.common.tasks.metrics import EXAMPLES, Stats
from fednc.tasks.dense import preparation
from fednc.tasks.dense.dataset import DenseData
from fednc.tasks.dense.maps import PART, VOID
from fednc.tasks.dense.pictures import as_bytes, evenly_chosen
from fednc.tasks.dense.task import DenseTask
from fednc.tasks.panoptic import losses, overlays, task_metrics
from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.dataset import PanopticData
from fednc.tasks.panoptic.matching import Matches, check_solver, match
from fednc.tasks.panoptic.merging import merged, to_pictures
from fednc.tasks.panoptic.network import Guess, NetworkShape, PartFormer
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.reading import read_data
from fednc.tasks.panoptic.suggest import suggest
from fednc.tasks.panoptic.targets import Targets, targets_of

PARTS = "backbone.parts."  # keys that only clients with part labels train
PART_LABELS = "part labels"  # what clients announce that they have
_EVERY = -1

Batch = tuple[Tensor, ...]


class PanopticSplit(preparation.DenseSplit):
    """`[split]` of this task."""

    part_labels: int = Field(
        _EVERY,
        ge=_EVERY,
        description=f"only the first so many parts of the split keep their part labels; {_EVERY}: all of them",
    )


class PanopticTask(DenseTask, ClassifierTask):
    """Panoptic segmentation with parts. Batches are (normalised pictures, labels, instances, parts)."""

    name = "panoptic"
    sources = ("coco", "streets")
    Options = PanopticOptions
    Split = PanopticSplit
    metrics = ()  # they depend on the options; see _check_primary
    summary_metrics = ("pq", "part_miou", "pwq_gm", "part_pq_parts", "pq_things")
    rehearses_with_frame = False
    scores_classes = False  # but maps
    options: PanopticOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        if not run.train.epochs:
            raise ConfigError("train.epochs = 0: this task has to train its masks; set it to 1 or more")

    def _check_primary(self) -> None:
        """See Task. Makes the metrics, which depend on the options."""
        pixels = self.options.size[0] * self.options.size[1]
        self.measured_by = tuple(metric(self.columns, pixels) for metric in task_metrics.ALL)
        super()._check_primary()

    # ---- classes ---------------------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> Columns:
        """What the queries and the columns of the classifier stand for."""
        return Columns.of(self.options, self.run.frame.vertices)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes, parts, and `no object`."""
        return self.columns.names

    @property
    def members_per_example(self) -> int:
        """Queries of a picture."""
        return self.columns.all_queries

    # ---- data ------------------------------------------------------------------------------------------------

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Keys of `[task]` for the pictures at `spec`. Raises DataError."""
        return suggest(spec)

    def read(self, spec: str, purpose: Purpose) -> PanopticData:
        """The pictures at `spec`; for prediction also a picture file or a folder of them. Raises DataError."""
        return read_data(spec, purpose, self.options, self.columns)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> DenseData:
        """The training pictures at `spec`, or one part of them, perhaps without part labels. Raises DataError."""
        check_solver()  # a client without it is told before round one
        return super().load_train(spec, part, split)

    def with_labels_of(self, mine: DenseData, split: SplitSection, part: int) -> DenseData:
        """Only the first `split.part_labels` parts keep their part labels."""
        labelled = split.part_labels if isinstance(split, PanopticSplit) else _EVERY
        if labelled == _EVERY or part < labelled:
            return mine
        return replace(mine, maps={**mine.maps, PART: torch.full_like(mine.maps[PART], VOID)})

    # ---- who trains what -------------------------------------------------------------------------------------

    def aggregation(self, key: str) -> Aggregation:
        """Part decoder and part queries are averaged over the clients that have part labels."""
        return Aggregation.OWNERS if key.startswith(PARTS) else super().aggregation(key)

    @cached_property
    def _part_keys(self) -> tuple[str, ...]:
        with torch.device("meta"):
            return tuple(key for key in self.build_model().state_dict() if key.startswith(PARTS))

    @property
    def parts(self) -> tuple[str, ...]:
        """Part labels, if the run has parts: some clients have none."""
        return (PART_LABELS,) if self.options.parts else ()

    def holdings(self, data: TaskData) -> Mapping[str, int]:
        """The pictures that have part labels."""
        assert isinstance(data, PanopticData)
        return dict.fromkeys(self.parts, data.with_parts)

    def owned(self, data: TaskData) -> Mapping[str, int]:
        """The part keys, with the pictures that have part labels."""
        labelled = self.holdings(data).get(PART_LABELS, 0)
        return dict.fromkeys(self._part_keys, labelled) if labelled else {}

    # ---- model -----------------------------------------------------------------------------------------------

    def backbone(self) -> tuple[nn.Module, int]:
        """(layers from pictures to masks and queries, the width of the queries)."""
        return PartFormer(self.shape), self.options.width

    @property
    def shape(self) -> NetworkShape:
        """How large the network is."""
        options, columns = self.options, self.columns
        return NetworkShape(
            channels=options.channels,
            pyramid=options.pyramid,
            width=options.width,
            heads=options.heads,
            stages=options.stages,
            classes=len(columns.classes),
            things=columns.queries,
            stuff=columns.stuff,
            wholes=tuple(whole for whole, _ in columns.parts),
            masked=options.decoder == "masked",
        )

    def build_model(self) -> PanopticModel:
        """A new model."""
        backbone, width = self.backbone()
        projection = self.projection(width)
        return PanopticModel(
            backbone, projection, build_head(self.run.method, self.run.frame.dim, self.label_space)
        )

    @property
    def label_space(self) -> int:
        """K: classes, parts, `no object`, and reserved columns."""
        return self.columns.space

    # ---- training --------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of the masks of every stage, of the first masks, and of the columns of all stages' queries."""
        found, columns = as_panoptic(model), self.columns
        targets = targets_of(batch[1:], columns)
        # What only owners send must not move elsewhere: the rest would be trained together with it, and meet
        # another.
        guess = found.backbone(batch[0], trains_parts=bool(targets.judged_parts_Bhw.any()))
        feat_TBND = found.of_stages(guess)
        matches = self._matches(guess, feat_TBND, found, targets, guide)
        aims = [losses.aims_of(targets, each, columns) for each in matches]
        pairs = enumerate(zip(guess.mask_BNhw, aims, strict=True))
        parts = {f"masks{stage}": losses.mask_loss(mask, aim) for stage, (mask, aim) in pairs}
        first_BPhw = guess.mask_BNhw[0][:, columns.part_rows]
        parts["pixels"] = losses.semantic_loss(guess.semantic_BChw, first_BPhw, targets)
        if self.options.rank:
            parts["rank"] = self.options.rank * losses.rank_loss(guess.mask_BNhw[0], aims[0], columns)
        of_classes, named = self._class_loss(found, batch[0], feat_TBND, aims[1:], guide)
        total = torch.stack([*parts.values(), of_classes]).sum()
        return total, {**{name: part.detach() for name, part in parts.items()}, **named}

    def _matches(
        self, guess: Guess, feat_TBND: Tensor, model: PanopticModel, targets: Targets, guide: Guide
    ) -> list[Matches]:
        """For the first masks and for each stage; a stage is matched with what the one before it found."""
        things = self.columns.queries
        first = match(guess.mask_BNhw[0][:, :things], None, targets)
        later = [
            match(mask_BNhw[:, :things], self._shares(logits_of(model, feat_BND, guide))[:, :things], targets)
            for mask_BNhw, feat_BND in zip(guess.mask_BNhw[1:-1], feat_TBND[:-1].detach(), strict=True)
        ]
        return [first, first, *later]

    def _class_loss(
        self, model: PanopticModel, inputs: Tensor, feat_TBND: Tensor, aims: Sequence[losses.Aims], guide: Guide
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `guide.method`; each query's softmax is over the columns that it may have."""
        told_TBN = torch.stack([aim.told_BN for aim in aims])
        if not told_TBN.any():  # pictures without a judged pixel
            return 0 * feat_TBND.sum(), {}
        column_TBN = torch.stack([aim.column_BN for aim in aims])
        allowed_NK = self.columns.allowed_NK.to(told_TBN.device)
        views = views_of(guide, lambda other: as_panoptic(other).of_stages(other.backbone(inputs))[told_TBN])
        total, named = objective(
            feat_TBND[told_TBN],
            column_TBN[told_TBN],
            model.head,
            replace(guide, class_weight_K=self._weight_K.to(told_TBN.device), count_K=self._skew_K(guide.count_K)),
            views=views,
            allowed_BK=allowed_NK.expand(*told_TBN.shape, -1)[told_TBN],
        )
        factor = losses.CLASS * len(aims)
        return factor * total, {name: factor * part for name, part in named.items()}

    @property
    def _weight_K(self) -> Tensor:
        weight_K = torch.ones(self.label_space)
        weight_K[self.columns.no_object] = self.options.no_object
        return weight_K

    def _skew_K(self, count_K: Tensor) -> Tensor:
        """Counts for a class prior: those of things, and for all other columns the geometric mean of these.

        How often a query finds nothing follows from the number of queries, not from the client. A prior that knew
        it would leave queries free to find one object several times.
        """
        count_K = count_K.to(torch.get_default_dtype()).clamp(min=1)
        is_thing_K = torch.zeros(len(count_K), dtype=torch.bool, device=count_K.device)
        is_thing_K[list(self.columns.things)] = True
        return torch.where(is_thing_K, count_K, count_K[is_thing_K].log().mean().exp())

    def _shares(self, score_BNK: Tensor) -> Tensor:
        """Probabilities [B, N, K] of the columns that each query may have."""
        allowed_NK = self.columns.allowed_NK.to(score_BNK.device)
        return score_BNK.float().masked_fill(~allowed_NK, -torch.inf).softmax(dim=-1).nan_to_num(0.0)

    # ---- features and read-out -------------------------------------------------------------------------------

    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [X, D], columns [X]) of the queries of the last stage, as they are matched by masks."""
        found = as_panoptic(model)
        guess, targets = found.backbone(batch[0]), targets_of(batch[1:], self.columns)
        matches = match(guess.mask_BNhw[-1][:, : self.columns.queries], None, targets)
        aims = losses.aims_of(targets, matches, self.columns)
        feat_BND = found.projection(guess.embed_BND[-1])
        return unit(feat_BND[aims.told_BN]), aims.column_BN[aims.told_BN]

    def aligned(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `embed`: the memory is in the frame's space."""
        return self.embed(model, batch)

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Maps of classes, instances and parts, int64 [B, 3, H, W] (`merging.merged`)."""
        found, options = as_panoptic(model), self.options
        guess = found.backbone(inputs)
        feat_BND = found.projection(guess.embed_BND[-1])
        score_XK = readout_logits(feat_BND.flatten(0, 1), found.head, guide, self._classes_in(guide))
        share_BNK = self._shares(score_XK.reshape(*feat_BND.shape[:2], -1))
        mask_BNHW = to_pictures(guess.mask_BNhw[-1], inputs.shape[2:])
        return merged(mask_BNHW, share_BNK, self.columns, options.score, options.kept)

    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(predicted maps, true maps), each int64 [B, 3, H, W]."""
        return self.scores(model, batch[0], guide), torch.stack(batch[1:], dim=1)

    def statistics(self, model: nn.Module, batch: Batch, guide: Guide) -> Stats:
        """See Task; all metrics share their sums, which are made once."""
        output, target = self.outputs(model, batch, guide)
        return {EXAMPLES: torch.tensor(len(target)), **self.measured_by[0].sums(output, target)}

    # ---- for people ------------------------------------------------------------------------------------------

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """For each picture its things and stuff with the number of segments."""
        return [{"segments": overlays.listed(maps_3HW, self.columns)} for maps_3HW in output.long()]

    def prediction_files(self, batch: Batch, output: Tensor, names: Sequence[str]) -> Mapping[str, bytes]:
        """For each picture an overlay, and a PNG of each map (`overlays.coded`)."""
        files = {}
        for number, name in enumerate(names):
            maps_3HW = output[number].long().cpu()
            stem = file_stem(name)
            files[f"{stem}-overlay.png"] = self._page(batch, number, maps_3HW)
            files |= {f"{stem}-{kind}.png": file for kind, file in overlays.coded(maps_3HW).items()}
        return files

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """`pictures.png`: test pictures, evenly chosen, with prediction, truth, and what was matched and
        missed.
        """
        assert isinstance(data, PanopticData)
        chosen = evenly_chosen(data.examples)
        pages = [
            self._image(batch, 0, self.scores(model, batch[0], guide)[0].cpu())
            for batch in data.select(chosen).eval_batches(1)
        ]
        return {"pictures.png": overlays.as_file(pages)}

    def _page(self, batch: Batch, number: int, maps_3HW: Tensor) -> bytes:
        return overlays.as_file([self._image(batch, number, maps_3HW)])

    def _image(self, batch: Batch, number: int, maps_3HW: Tensor) -> Any:
        truth_3HW = torch.stack([each[number] for each in batch[1:]]).cpu()
        picture = as_bytes(batch[0][number], self.options.mean, self.options.std)
        return overlays.page(picture, maps_3HW, truth_3HW, self.columns)


class PanopticModel(ClassifierModel):
    """Network, projection of every query, head."""

    def features(self, inputs: Tensor) -> Tensor:
        """Features [B, N, D] of the queries of the last stage, not normalised."""
        feat_BND: Tensor = self.projection(self.backbone(inputs).embed_BND[-1])
        return feat_BND

    def of_stages(self, guess: Guess) -> Tensor:
        """Features [T, B, N, D] of the queries of all T stages, not normalised."""
        feat_TBND: Tensor = self.projection(torch.stack(list(guess.embed_BND)))
        return feat_TBND


def logits_of(model: PanopticModel, feat_BND: Tensor, guide: Guide) -> Tensor:
    """[B, N, K]: the head as trained."""
    return logits(model.head, feat_BND.flatten(0, 1), guide).reshape(*feat_BND.shape[:2], -1)


def as_panoptic(model: nn.Module) -> PanopticModel:
    """`model`, which must come from `build_model` of this task."""
    assert isinstance(model, PanopticModel)
    return model
