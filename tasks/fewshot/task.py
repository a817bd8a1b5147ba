"""The task: image classification with classes that come in sessions, later ones with few examples each.

Found by name through `fednc.common.tasks`. The first stage works as in the image task; this file has the
differences. Must not know servers, clients or the link.

Legend: B batch, C backbone width, D feature width, K label space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection, TrainSection
from fednc.common.errors import ConfigError
from fednc.common.learning.frame import unit
from fednc.common.learning.optimisers import make_optimiser
from fednc.common.learning.readout import READOUTS, MemoryReadOut, as_trained, readout_of
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.incremental import Incremental
from fednc.common.tasks.splits import Index, at_few_sites, at_first_site
from fednc.common.tasks.stages import Stage
from fednc.tasks.fewshot.models import FewShotModel, Lengthened, Projection, build_backbone, width_of
from fednc.tasks.fewshot.options import FewShotOptions
from fednc.tasks.fewshot.rotated_classes import TURNS, with_virtual
from fednc.tasks.fewshot.session_loss import rehearsed, session_loss
from fednc.tasks.image.task import ImageTask
from fednc.tasks.vision.dataset import ImageBatch

FROZEN = "backbone."  # key prefix of parameters and statistics that are frozen after the first stage
HEAD = "head."


class FewShotTask(Incremental, ImageTask):
    """Few-shot class-incremental image classification. Batches are those of the image task."""

    name = "fewshot"
    sources = ()
    Options = FewShotOptions
    options: FewShotOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        later = tuple(name for session in run.sessions for name in session.classes)
        # Not validated on purpose: the registry gives a better error for a duplicate name.
        self.options = self.options.model_copy(update={"classes": self.options.classes + later})
        self.options._takes_unknown = any(session.start == "operator" for session in run.sessions)
        _check(self.registry.names, run)
        _check_fit(self.options, run)
        _check_room(self.label_space, self.stages[0].classes, run)

    @property
    def memory_dim(self) -> int:
        """C: the memory is taken before the projection, so that it can be projected again at every step."""
        return width_of(self.options)

    @property
    def feature_dim(self) -> int:
        """D: `frame.dim`; raw features are not projected."""
        return width_of(self.options) if self.options.features == "raw" else super().feature_dim

    @property
    def keeps_memory(self) -> bool:
        """False if sessions fine-tune: nothing else would use the memory."""
        return not self.options.fine_tunes

    @property
    def min_sum_examples(self) -> int:
        """`task.min_sum_examples`."""
        return self.options.min_sum_examples

    def backbone(self) -> tuple[nn.Module, int]:
        """Layers that give features [B, C] of length 1, or at most 1 if they are raw; and C."""
        return build_backbone(self.options)

    def projection(self, width: int) -> nn.Module:
        """The projection of NC-FSCIL; none for raw features."""
        if self.options.features == "raw":
            return Lengthened()
        return Projection(width, self.options.hidden or 2 * width, self.run.frame.dim)

    def build_model(self) -> FewShotModel:
        """A new model. The head is drawn last, so that all methods start from the same backbone and projection."""
        made = super().build_model()
        return FewShotModel(made.backbone, made.projection, made.head)

    def trained_keys(self, model: nn.Module, stage: Stage) -> list[str]:
        """All keys in the first stage, all except the backbone's afterwards; or as `task.fit` says."""
        keys = super().trained_keys(model, stage)
        if stage.is_first or self.options.fit == "all":
            return keys
        if self.options.fit == "head":
            return [key for key in keys if key.startswith(HEAD)]
        return [key for key in keys if not key.startswith(FROZEN)]

    def _parts(self, label_N: Index, split: SplitSection) -> list[Index]:
        """The parts; with `split.sites`, only a few of them have the classes of sessions."""
        parts, first = super()._parts(label_N, split), self.stages[0].classes
        if split.sites == "first":
            return at_first_site(label_N, parts, first)
        return at_few_sites(label_N, parts, split.sites, first) if split.sites else parts

    def loss(self, model: nn.Module, batch: ImageBatch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The image task's loss in the first stage and in fine-tuning; else that of `session_loss.py`."""
        if not guide.earlier or self.options.fine_tunes:
            if guide.method.virtual_share and not guide.earlier:
                batch, guide = with_virtual(batch, guide, self.stages[0].classes)
            return super().loss(model, batch, guide)
        found, held_K = _model(model), guide.count_K > 0
        with torch.no_grad():
            feat_BC = found.pooled(batch[0])
        return self._fit_loss(found, feat_BC, batch[1], guide, held_K)

    def same_for_each_batch(self, guide: Guide) -> bool:
        """True in the first stage, unless images are rotated at random. Sessions mix features at random."""
        return not (guide.earlier or guide.method.virtual_share)

    def fits_centrally(self, stage: Stage) -> bool:
        """True in sessions if clients have nothing to train."""
        return self.options.fit in ("server", "nothing") and not stage.is_first

    @property
    def settling_steps(self) -> int:
        """`task.settle`."""
        return self.options.settle

    def fit(self, model: nn.Module, guide: Guide, section: TrainSection, generator: torch.Generator) -> float:
        """Train projection and head on the memory alone, for `section.epochs` steps; NaN if nothing is trained."""
        if self.options.fit == "nothing" and guide.earlier:
            return math.nan
        found = _model(model)
        trained = [p for name, p in found.named_parameters() if not name.startswith(FROZEN)]
        optimiser = make_optimiser(trained, section, section.lr)
        none_BC, none_B = guide.mean_KD[:0], torch.zeros(0, dtype=torch.int64, device=guide.mean_KD.device)
        loss = torch.tensor(0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            for _ in range(section.epochs):
                loss, _ = self._fit_loss(found, none_BC, none_B, guide, torch.zeros_like(guide.seen_K))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        return float(loss.detach())

    def _fit_loss(
        self, model: FewShotModel, feat_BC: Tensor, label_B: Tensor, guide: Guide, held_K: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        options, base = self.options, self.stages[0].classes
        memory_MC, label_M = rehearsed(guide, base, options.copies, held_K)
        feat_ND = model.projection(torch.cat([feat_BC, memory_MC]))
        loss = session_loss(
            feat_ND, torch.cat([label_B, label_M]), model.head, guide, balance=options.balance, mixup=options.mixup
        )
        return loss, {"alignment": loss.detach()}

    def embed(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """(backbone features [B, C] of length at most 1, labels [B])."""
        return _model(model).pooled(batch[0]), batch[1]

    def aligned(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """(unit projected features [B, D], labels [B])."""
        return unit(_model(model).features(batch[0])), batch[1]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """As in the image task. A memory read-out uses backbone features, and the head until there is a memory."""
        found, readout = _model(model), readout_of(guide)
        if not isinstance(readout, MemoryReadOut):
            return super().scores(model, inputs, guide)
        pooled_BC = found.pooled(inputs)
        by_memory_BK = readout.memory_scores(pooled_BC, guide, guide.method.scale)
        classes = guide.classes or len(self.class_names)
        by_head_BK = as_trained(found.features(inputs), found.head, guide, classes)
        # both are computed, and chosen without asking the device: an exported graph cannot branch in Python
        return torch.where(guide.seen_K.any(), by_memory_BK, by_head_BK)

    def memory_cosines(self, model: nn.Module, guide: Guide) -> dict[str, float]:
        """Cosine of the projected memory to the vertex, for the classes that have a memory."""
        found = _model(model)
        with torch.no_grad():
            feat_KD = unit(found.projection(guide.mean_KD))
        cosine_K = (feat_KD * guide.etf_KD).sum(dim=1).tolist()
        return {name: cosine_K[i] for i, name in enumerate(self.class_names) if guide.seen_K[i]}


def _model(model: nn.Module) -> FewShotModel:
    assert isinstance(model, FewShotModel)
    return model


def _check(names: tuple[str, ...], run: RunConfig) -> None:
    """Raises ConfigError for a method that does not work with a memory from before the projection."""
    method = run.method
    stands_in = method.memory_source != "memory" or method.memory_model == "local"
    # to be compared with anything else, the memory would have to be in the frame's space
    unfit = [each.name for each in READOUTS if each.needs_memory and not isinstance(each, MemoryReadOut)]
    if method.trains_with_memory or method.compares_models or method.readout in unfit or stands_in:
        raise ConfigError(
            f"task.name {run.task.name!r} takes its memory before the projection and rehearses it itself: "
            "leave method.anchor, centre, rehearsal, target_blend, contrast and distil at 0, memory_source and "
            f"memory_model at their defaults, and readout other than {', '.join(map(repr, unfit))}"
        )
    if len(names) < 2:
        raise ConfigError("task.classes: task and sessions have only one class in all; give at least two")


def _check_fit(options: FewShotOptions, run: RunConfig) -> None:
    """Raises ConfigError for a method that does not work with `task.fit` or `task.features`."""
    method = run.method
    if options.fine_tunes and (method.reads_memory or method.head == "frame" or options.settle):
        raise ConfigError(
            f"task.fit = {options.fit!r} fine-tunes a trained head and keeps no memory: set method.head to "
            "'linear' or 'cosine', method.readout to 'head', and task.settle to 0"
        )
    if options.fit == "nothing" and not method.reads_memory:
        raise ConfigError(
            f"task.fit = 'nothing' trains no class of a session, so method.readout {method.readout!r} would never "
            "predict one: use a read-out by the class memory, such as 'memory'"
        )
    trains = options.fit != "nothing" or options.settle
    if options.features == "raw" and method.head == "frame" and trains:
        raise ConfigError(
            "task.features = 'raw' has no projection, and method.head 'frame' is frozen, so a session would train "
            "nothing: set method.head to 'linear' or 'cosine', or task.fit = 'nothing' and task.settle = 0"
        )
    if options.features == "raw" and method.spread:
        raise ConfigError(
            "method.spread follows from the length of a mean of unit features: set it to 0, or task.features to "
            "'unit'"
        )


def _check_room(vertices: int, base: int, run: RunConfig) -> None:
    """Raises ConfigError if there are not enough vertices for the virtual classes.

    Classes that an operator names simply take the next vertex: virtual classes are no longer needed by then.
    """
    spare = vertices - base - sum(len(one.classes) for one in run.sessions if one.start != "operator")
    if run.method.virtual_share and spare < TURNS * base:
        raise ConfigError(
            f"method.virtual_share: {base} classes in {TURNS} rotations need {TURNS * base} spare vertices, but "
            f"there are {spare}. Raise frame.vertices, or set virtual_share = 0."
        )
