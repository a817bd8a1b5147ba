"""The task: image classification whose classes come in sessions, of which later ones bring a few examples each.

Found by name through `fednc.common.tasks`. The beginning is the image task's; what differs is said here. Must not
know servers, clients or the link.

Legend: B batch, C backbone width, D feature width, K label space, S stages.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection, TrainSection
from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.learning.frame import unit
from fednc.common.learning.optimisers import make_optimiser
from fednc.common.learning.readout import READOUTS, MemoryReadOut, as_trained, readout_of
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.incremental import Incremental
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.splits import Index, at_few_sites
from fednc.common.tasks.stages import Stage
from fednc.common.tasks.tensor_data import UNLABELLED
from fednc.tasks.fewshot.models import FewShotModel, Projection, build_backbone, width_of
from fednc.tasks.fewshot.options import FewShotOptions
from fednc.tasks.fewshot.rotated_classes import TURNS, with_virtual
from fednc.tasks.fewshot.session_loss import rehearsed, session_loss
from fednc.tasks.fewshot.session_metrics import figures
from fednc.tasks.image.task import ImageTask
from fednc.tasks.vision.dataset import ImageBatch

FROZEN = "backbone."  # after the beginning: parameters and statistics


class FewShotTask(Incremental, ImageTask):
    """Few-shot class-incremental image classification. Batches are those of the image task."""

    name = "fewshot"
    Options = FewShotOptions
    options: FewShotOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        later = tuple(name for session in run.sessions for name in session.classes)
        # Unchecked on purpose: the registry says what is wrong with a name that is there twice.
        self.options = self.options.model_copy(update={"classes": self.options.classes + later})
        self.options._takes_unknown = any(session.start == "operator" for session in run.sessions)
        _check(self.registry.names, run)
        _check_room(self.label_space, self.stages[0].classes, run)

    @property
    def memory_dim(self) -> int:
        """C: the memory lies before the projection, so that it can be projected anew at every step."""
        return width_of(self.options)

    @property
    def min_sum_examples(self) -> int:
        """`task.min_sum_examples`."""
        return self.options.min_sum_examples

    def backbone(self) -> tuple[nn.Module, int]:
        """Layers to unit features [B, C]."""
        return build_backbone(self.options)

    def projection(self, width: int) -> nn.Module:
        """The projection of NC-FSCIL."""
        return Projection(width, self.options.hidden or 2 * width, self.run.frame.dim)

    def build_model(self) -> FewShotModel:
        """The head is drawn last, so that all methods start from the same backbone and projection."""
        made = super().build_model()
        return FewShotModel(made.backbone, made.projection, made.head)

    def trained_keys(self, model: nn.Module, stage: Stage) -> list[str]:
        """All in the beginning, all but the backbone's afterwards."""
        keys = super().trained_keys(model, stage)
        return keys if stage.is_first else [key for key in keys if not key.startswith(FROZEN)]

    def _parts(self, label_N: Index, split: SplitSection) -> list[Index]:
        """The classes of sessions at few sites only, where the split says so."""
        parts, first = super()._parts(label_N, split), self.stages[0].classes
        return at_few_sites(label_N, parts, split.sites, first) if split.sites else parts

    def loss(self, model: nn.Module, batch: ImageBatch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """In the beginning the image task's; in sessions that of `session_loss.py` over batch and memory."""
        if not guide.earlier:
            if guide.method.virtual_share:
                batch, guide = with_virtual(batch, guide, self.stages[0].classes)
            return super().loss(model, batch, guide)
        found, held_K = _model(model), guide.count_K > 0
        with torch.no_grad():
            feat_BC = found.pooled(batch[0])
        return self._fit_loss(found, feat_BC, batch[1], guide, held_K)

    def same_for_each_batch(self, guide: Guide) -> bool:
        """In the beginning, but for images turned by chance; in sessions features are mixed by chance."""
        return not (guide.earlier or guide.method.virtual_share)

    def fits_centrally(self, stage: Stage) -> bool:
        """In sessions, where `task.fit` says so."""
        return self.options.fit == "server" and not stage.is_first

    @property
    def settling_steps(self) -> int:
        """`task.settle`."""
        return self.options.settle

    def fit(self, model: nn.Module, guide: Guide, section: TrainSection, generator: torch.Generator) -> float:
        """`section.epochs` steps on the memory alone; the projection's and the head's parameters move."""
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
        """(unit backbone features [B, C], labels [B])."""
        return _model(model).pooled(batch[0]), batch[1]

    def aligned(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """(unit projected features [B, D], labels [B])."""
        return unit(_model(model).features(batch[0])), batch[1]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """As the image task's; by memory: of backbone features, once there are any, and by the head until then."""
        found, readout = _model(model), readout_of(guide)
        if not isinstance(readout, MemoryReadOut):
            return super().scores(model, inputs, guide)
        if guide.seen_K.any():
            return readout.memory_scores(found.pooled(inputs), guide, guide.method.scale)
        return as_trained(found.features(inputs), found.head, guide, guide.classes or len(self.class_names))

    def memory_cosines(self, model: nn.Module, guide: Guide) -> dict[str, float]:
        """Of the projected memory to the vertex, for the classes that have one."""
        found = _model(model)
        with torch.no_grad():
            feat_KD = unit(found.projection(guide.mean_KD))
        cosine_K = (feat_KD * guide.etf_KD).sum(dim=1).tolist()
        return {name: cosine_K[i] for i, name in enumerate(self.class_names) if guide.seen_K[i]}

    def statistics(self, model: nn.Module, batch: ImageBatch, guide: Guide) -> Stats:
        """The image task's, and by stage how many examples were evaluated in it."""
        stats = super().statistics(model, batch, guide)
        counted_S = self._none_by_stage()
        counted_S[self._stage_of(guide)] = int((batch[1] != UNLABELLED).sum())
        return {**stats, "evaluated_S": counted_S}

    def no_statistics(self) -> Stats:
        """See Task."""
        return {**super().no_statistics(), "evaluated_S": self._none_by_stage()}

    def check_statistics(self, stats: Stats, announced: int) -> bool:
        """See Task."""
        evaluated_S = stats["evaluated_S"]
        if bool((evaluated_S < 0).any()) or int(evaluated_S.sum()) != int(stats["examples"]):
            raise ProtocolError("the examples of all stages are not those that were evaluated")
        return super().check_statistics(stats, announced)

    def measure(self, stats: Mapping[str, Tensor]) -> dict[str, float]:
        """The image task's, and `base`, `novel`, `newest` and `harmonic` of `session_metrics.py`."""
        found = super().measure(stats)
        if not stats or not int(stats["examples"]):
            return found
        stage = self.stages[int(stats["evaluated_S"].nonzero().max())]
        return found | figures(stats["correct_K"], stats["count_K"], self.stages[0].classes, stage)

    def _none_by_stage(self) -> Tensor:
        return torch.zeros(len(self.stages), dtype=torch.int64)

    def _stage_of(self, guide: Guide) -> int:
        classes = self._classes_in(guide)
        return next(stage.number for stage in self.stages if classes <= stage.classes)


def _model(model: nn.Module) -> FewShotModel:
    assert isinstance(model, FewShotModel)
    return model


def _check(names: tuple[str, ...], run: RunConfig) -> None:
    """Raises ConfigError: a method that does not fit a memory from before the projection."""
    method = run.method
    stands_in = method.memory_source != "memory" or method.memory_model == "local"
    # compared with anything beside it, the memory would have to lie in the frame's space
    unfit = [each.name for each in READOUTS if each.needs_memory and not isinstance(each, MemoryReadOut)]
    if method.trains_with_memory or method.compares_models or method.readout in unfit or stands_in:
        raise ConfigError(
            f"task.name {run.task.name!r} keeps its memory before the projection and rehearses it by itself: "
            "leave method.anchor, centre, rehearsal, target_blend, contrast and distil at 0, memory_source and "
            f"memory_model at their defaults, and readout other than {', '.join(map(repr, unfit))}"
        )
    if len(names) < 2:
        raise ConfigError("task.classes: the beginning and the sessions have one class together; give two or more")


def _check_room(vertices: int, base: int, run: RunConfig) -> None:
    """Raises ConfigError: virtual classes without vertices.

    Classes that an operator names take whatever vertex is next: by then virtual classes have done their work.
    """
    spare = vertices - base - sum(len(one.classes) for one in run.sessions if one.start != "operator")
    if run.method.virtual_share and spare < TURNS * base:
        raise ConfigError(
            f"method.virtual_share: {base} classes turned {TURNS} ways need {TURNS * base} spare vertices, there "
            f"are {spare}. Raise frame.vertices, or set virtual_share = 0."
        )
