"""The sections of the run file, one class per table; `run.py` combines them.

Add new keys here, with the description for `docs/config.md`. Knows no task and reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from fednc.common.config.choices import OneOf, ReadOutNeeds, listed, provided
from fednc.common.errors import ConfigError
from fednc.common.plugins import check_name
from fednc.common.registry import Named

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Later:
    """Marks a key that was added later. At its default it is left out of the digest, so old runs keep theirs."""


LATER = Later()


def _methods() -> Any:
    """The registry of methods."""
    return provided("fednc.common.methods.registry")


READOUT = OneOf[ReadOutNeeds](
    "fednc.common.learning.readout:READOUTS", before="how features are turned into class scores at evaluation. "
)

CODEC = OneOf[Named](
    "fednc.common.wire.update_codec:CODECS", after=". Rounding errors are added to the next round's update"
)


class ServerOnly:
    """Marks a key that clients do not need: it is left out of the run file that they are sent."""


SERVER_ONLY = ServerOnly()


class Section(BaseModel):
    """A table of the run file. Unknown keys are errors; values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskSection(BaseModel):
    """The task to learn. The other keys of this table belong to the task that `name` chooses."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, AfterValidator(check_name)] = Field(
        "image", description="task to run; must be installed on the server and on every client"
    )
    weights: Annotated[str, LATER, SERVER_ONLY] = Field(
        "",
        description="file with the weights to start from: safetensors, or a state dict of PyTorch. Only the "
        "server reads it, and sends the model as always; clients never learn the path. Empty: weights are drawn",
    )
    freeze: Annotated[tuple[str, ...], LATER] = Field(
        (),
        description="blocks of the model that are not trained, by the names of its modules, such as `stem` or "
        "`layer1`. They travel once, and their running statistics do not change; `fednc check` shows the "
        "blocks and what a round costs",
    )
    adapter_rank: Annotated[int, Field(ge=0, le=1024), LATER] = Field(
        0,
        description="rank of low-rank adapters (LoRA) on the linear and convolution layers of the model's body. "
        "They are trained instead of the body's own weights, which travel once; the exported model has them "
        "merged. 0: none",
    )
    adapt: Annotated[tuple[str, ...], LATER] = Field(
        (), description="blocks that get adapters, named as in `freeze`; empty: the whole body"
    )

    @property
    def server_keys(self) -> set[str]:
        """The keys that clients do not need."""
        return {key for key, field in type(self).model_fields.items() if SERVER_ONLY in field.metadata}


class FrameSection(Section):
    """The frozen simplex equiangular tight frame that all clients are trained towards."""

    kind: Annotated[Literal["simplex", "orthogonal"], LATER] = Field(
        "simplex",
        description="`simplex`: pairwise cosine -1/(K-1); `orthogonal`: cosine 0, to compare with",
    )
    dim: Annotated[int, Field(ge=1)] = Field(
        128, description="dimension d of the feature space that contains the frame"
    )
    vertices: Annotated[int, Field(ge=0)] = Field(
        0,
        description="size K of the label space, including classes that come later; 0: the number of classes",
    )


_DEFAULT = "fednc"


def _names(schema: dict[str, Any]) -> None:
    schema["enum"] = list(_methods().SHIPPED)


class MethodSection(Section):
    """The learning method. `name` sets the defaults of the other keys; a key written here wins."""

    # Keys of single methods are kept as extra values. The methods in `parts` know them.
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(_DEFAULT, description="the method; sets the keys of this table", json_schema_extra=_names)
    server_step: Annotated[str, LATER, SERVER_ONLY] = Field(
        "",
        description="a further method that only has a step at the server, added with its keys: `fedavgm`, "
        "`fedadagrad`, `fedadam`, `fedyogi` or a plug-in of this kind; empty: none",
    )
    head: Literal["linear", "cosine", "frame"] = Field(
        "frame",
        description="`linear`: an ordinary trained classifier; `cosine`: trained class vectors, compared by "
        "direction; `frame`: the frozen vertices",
    )
    loss: Literal["ce", "balanced-ce", "calibrated-ce", "dot"] = Field(
        "balanced-ce",
        description="`ce`: cross-entropy; `balanced-ce`: with the client's class prior; `calibrated-ce`: with a "
        "margin for its rare classes and without those it lacks (FedLC); `dot`: dot regression to the vertex",
    )
    scale: Positive = Field(
        16.0, description="factor s on the cosines before the softmax (initial value if trained)"
    )
    train_scale: bool = Field(False, description="learn the scale s and average it with the model")
    prior_tau: NonNegative = Field(
        1.0, description="strength of prior or margin in `balanced-ce` and `calibrated-ce`"
    )
    prior_fade: Annotated[Share, LATER] = Field(
        0.0,
        description="share of `prior_tau` that is gone in the last round; it falls linearly over the rounds. Not "
        "with [[sessions]]",
    )
    dot_weight: Positive = Field(10.0, description="weight of the dot-regression loss")
    anchor: NonNegative = Field(0.0, description="weight of the pull of features towards the class memory")
    centre: Annotated[NonNegative, LATER] = Field(
        0.0, description="weight of the pull of each class's mean in the batch towards the class memory"
    )
    rehearsal: NonNegative = Field(
        0.0,
        description="weight of rehearsing the memory of all seen classes. Trained class vectors rehearse it "
        "directly; with frozen ones the projection does, and the memory is taken before the projection",
    )
    target_blend: Annotated[Share, LATER] = Field(
        0.0, description="share b of the memory in the training targets: normalised (1-b) vertex + b memory"
    )
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(
        1,
        description="rounds without memory terms; after them their weight grows linearly over the same number of "
        "rounds",
    )
    memory_model: Literal["global", "local"] = Field(
        "global",
        description="model whose features make up the memory. `global`: the aggregated model (exact; one more "
        "forward pass and a short exchange per round); `local`: each client's own after training (sent with its "
        "update)",
    )
    memory_space: Annotated[Literal["projected", "backbone"], LATER] = Field(
        "projected",
        description="features that make up the memory. `projected`: after the projection, in the frame's space; "
        "`backbone`: before it, for read-outs by the memory alone; what clients send for it grows with the square "
        "of the width",
    )
    memory_momentum: Share = Field(
        0.0,
        description="share of the old vectors kept at each update; raise it if few clients take part. The metric "
        "of `discriminant` always comes from the last round",
    )
    memory_source: Annotated[Literal["memory", "vertex", "own", "shuffled", "stale", "random"], LATER] = Field(
        "memory",
        description="replaces the class memory wherever it is used, as a control that shows what it is worth. "
        "`memory`: the memory itself; `vertex`: the class's vertex; `own`: the client's own class means (at the "
        "server, those of one client); `shuffled`: the memory of another class; `stale`: the memory after the "
        "warm-up; `random`: random vectors of the same length",
    )
    moment_codec: Annotated[Literal["fp32", "int16"], LATER] = Field(
        "fp32",
        description="how clients send second moments, which `discriminant`, `ridge` and a fitted projection need. "
        "`int16` halves the bytes: correlations in steps of 1/32767",
    )
    projection: Annotated[Literal["trained", "fitted", "drawn"], LATER] = Field(
        "trained",
        description="the layer from the backbone to the frame. `trained`: with the other layers; `fitted`: the "
        "server computes it after each round, in closed form from the class memory (`memory_space` must be "
        "`backbone`): all clients start with a classifier that is right for all classes, and neither train nor "
        "send it; `drawn`: as it was drawn, a control",
    )
    virtual_share: Annotated[Share, LATER] = Field(
        0.0,
        description="with [[sessions]]: share of the first stage's examples that the task alters and trains as "
        "classes of their own, on the last vertices, so that features separate more than the current classes. "
        "Needs one spare vertex for each altered class",
    )
    spread: Annotated[int, Field(ge=0), LATER] = Field(
        0,
        description="with [[sessions]]: number of features per step that stand for the memory of a class in "
        "rehearsal, drawn around it with a spread that follows from its length; 0: only the memory itself",
    )
    ridge: Annotated[Positive, LATER] = Field(
        0.01, description="for the read-out `ridge`: its regularisation, as a share of the features' mean variance"
    )
    readout: Annotated[str, READOUT] = "vertex"

    @model_validator(mode="wrap")
    @classmethod
    def _with_options(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in the preset and check the methods' own keys with their `Options`; report all mistakes at once."""
        if not isinstance(value, dict):
            return handler(value)
        given, mistakes = _checked_names(value)
        is_known = not mistakes
        given = {**_methods().get(given.get("name", _DEFAULT)).preset, **given}
        owned, others = _own_keys(given)
        mistakes += others
        shared = {key: given[key] for key in given if key in cls.model_fields}
        unknown = given.keys() - shared.keys() - owned.keys()
        for key in sorted(unknown) if is_known else ():  # keys of a method whose name is wrong may be right
            mistakes.append(InitErrorDetails(type="extra_forbidden", loc=(key,), input=given[key]))
        try:
            section = handler({**shared, **owned})
        except ValidationError as e:
            mistakes += map(_again, e.errors())
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return section

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        readout = READOUT.registry.get(self.readout)
        wants_vertices = self.loss == "dot" or readout.needs_vertices or self.target_blend > 0
        if self.head != "frame" and wants_vertices:
            others = [repr(each.name) for each in READOUT.registry if not each.needs_vertices]
            raise ValueError(
                f"head = {self.head!r} has no vertices: use loss 'ce' or 'balanced-ce', readout {listed(others)}, "
                "and target_blend = 0"
            )
        if self.head == "frame" and readout.needs_head:
            raise ValueError("head = 'frame' has no trained head: use another readout")
        if self.fits_projection and (self.head, self.memory_space, self.memory_model) != (
            "frame",
            "backbone",
            "global",
        ):
            raise ValueError(
                "projection = 'fitted' is computed from a memory of the global model's backbone, towards the "
                "vertices: set memory_space = 'backbone', memory_model = 'global' and head = 'frame'"
            )
        if readout.needs_ridge and self.memory_source != "memory":
            raise ValueError(
                f"readout = {self.readout!r} does not use the vectors that memory_source = {self.memory_source!r} "
                "replaces: use readout 'memory' or 'discriminant', or memory_source 'memory'"
            )
        return self

    @property
    def needs_classes(self) -> bool:
        """Whether the method needs features of classes, their vertices or their memory."""
        plain = (self.head, self.loss) == ("linear", "ce")
        return not plain or self.uses_memory or any(part.needs_classes for part in self.parts)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The active methods (`common/methods/registry.py`), for rooms that may not import them."""
        found: tuple[Any, ...] = _methods().parts(self)
        return found

    @property
    def option_fields(self) -> Mapping[str, FieldInfo]:
        """The keys besides those that all methods share."""
        tables = _option_tables(self.name, self.server_step)
        return {key: field for table in tables for key, field in table.model_fields.items()}

    @property
    def server_keys(self) -> set[str]:
        """The keys that clients do not need."""
        fields = {**type(self).model_fields, **self.option_fields}
        return {key for key, field in fields.items() if SERVER_ONLY in field.metadata}

    @property
    def compares_models(self) -> bool:
        """Whether the loss needs the outputs of other models for each batch."""
        return any(part.compares_models for part in self.parts)

    @property
    def uses_memory(self) -> bool:
        """Whether clients must send class sums for training or read-out."""
        return self.trains_with_memory or self.reads_memory or self.fits_projection

    @property
    def readout_needs(self) -> ReadOutNeeds:
        """What the read-out needs."""
        return READOUT.registry.get(self.readout)

    @property
    def reads_memory(self) -> bool:
        """Whether the read-out needs the class memory."""
        return self.readout_needs.needs_memory

    def needs_moments(self, model: str, *, is_first: bool) -> bool:
        """Whether class sums of this `memory_model` include second moments; only in the first stage."""
        needed = self.readout_needs.needs_moments or self.fits_projection
        return is_first and self.memory_model == model and needed

    @property
    def fits_projection(self) -> bool:
        """Whether the server computes the projection from the class memory, after each round."""
        return self.projection == "fitted"

    @property
    def trains_with_memory(self) -> bool:
        """Whether training uses the class memory, not only the read-out."""
        return max(self.anchor, self.centre, self.rehearsal, self.target_blend) > 0


def _option_tables(name: str, server_step: str) -> list[type[Section]]:
    """The models of the keys of the active methods and of those that combine with any."""
    names = dict.fromkeys([*_methods().MIXING, name, *([server_step] if server_step else [])])
    return [_methods().get(each).Options for each in names]


def _checked_names(values: dict[str, Any]) -> tuple[dict[str, Any], list[InitErrorDetails]]:
    """The table without unusable names, and what is wrong with these."""
    given, mistakes = dict(values), []
    for key, problem_of in (("name", _name_problem), ("server_step", _step_problem)):
        if key in given and (problem := problem_of(given)):
            mistakes.append(_mistake(key, given.pop(key), problem))
    return given, mistakes


def _name_problem(given: Mapping[str, Any], key: str = "name") -> str:
    """What is wrong with the name of a method; empty if nothing."""
    if not isinstance(given[key], str):
        return "a method is given by its name, a string"
    try:
        _methods().plugin_of(given[key])  # refuses a name that two distributions use
        _methods().get(given[key])
    except ConfigError as e:
        return str(e)
    return ""


def _step_problem(given: Mapping[str, Any]) -> str:
    """What is wrong with `server_step`; empty if nothing."""
    if given["server_step"] == "":
        return ""
    if problem := _name_problem(given, "server_step"):
        return problem
    name = given.get("name", _DEFAULT)
    if not _methods().is_step(given["server_step"]):
        return f"{given['server_step']!r} is more than a step at the server: name it in method.name"
    if _methods().is_step(name):
        return f"{name!r} is a step at the server itself, and there cannot be two steps at the server"
    return ""


def _own_keys(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[InitErrorDetails]]:
    """The keys of the active methods, checked and filled in, and what is wrong with them."""
    owned: dict[str, Any] = {}
    mistakes: list[InitErrorDetails] = []
    for options in _option_tables(given.get("name", _DEFAULT), given.get("server_step", "")):
        mine = {key: given[key] for key in options.model_fields if key in given}
        try:
            owned |= options.model_validate(mine).model_dump()
        except ValidationError as e:
            owned |= mine
            mistakes += map(_again, e.errors())
    return owned, mistakes


def _mistake(key: str, given: Any, problem: str) -> InitErrorDetails:
    kind = PydanticCustomError("method", "{problem}", {"problem": problem})
    return InitErrorDetails(type=kind, loc=(key,), input=given)


def _again(error: Any) -> InitErrorDetails:
    """An error of another validation, to be raised together with those of this one."""
    return InitErrorDetails(type=error["type"], loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


class TrainSection(Section):
    """Local training between two exchanges."""

    epochs: Annotated[int, Field(ge=0)] = Field(
        1,
        description="passes over the client's data per round. 0: nothing is trained, and the model as it starts "
        "is read out by the class memory alone: one round, in closed form",
    )
    batch: Count = Field(64, description="examples per step")
    lr: Positive = Field(0.03, description="learning rate of SGD")
    lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="factor on the learning rate per round")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="momentum of SGD, reset every round")
    weight_decay: NonNegative = Field(1e-5, description="weight decay of any optimizer that has one")
    optimizer: Annotated[str, LATER] = Field(
        "sgd",
        description="any optimizer of `torch.optim` by its name in lower case, e.g. `adamw`; reset every round",
    )
    optimizer_options: Annotated[dict[str, Any], LATER] = Field(
        {},
        description="further options of the optimizer, with PyTorch's names: `{betas = [0.9, 0.99]}`",
    )
    schedule: Annotated[Literal["constant", "cosine", "linear", "step"], LATER] = Field(
        "constant", description="how the learning rate changes over the rounds after the warm-up"
    )
    warmup_rounds: Annotated[int, Field(ge=0), LATER] = Field(
        0, description="rounds over which the learning rate grows to `lr`"
    )
    step_every: Annotated[Count, LATER] = Field(
        10, description="for `step`: rounds between two reductions of the rate"
    )
    step_factor: Annotated[float, Field(gt=0, le=1), LATER] = Field(
        0.1, description="for `step`: factor of each reduction"
    )
    accumulate: Annotated[Count, LATER] = Field(
        1, description="batches whose gradients are averaged for one step; the last of a round may have fewer"
    )
    clip_norm: NonNegative = Field(0.0, description="bound on the gradient's norm per step; 0: none")
    precision: Annotated[Literal["fp32", "bf16"], LATER] = Field(
        "fp32",
        description="arithmetic of the layers in training; weights, losses and everything that is sent stay fp32. "
        "`bf16` is faster on GPUs that support it, and slightly less exact",
    )

    @property
    def is_plain_sgd(self) -> bool:
        """Whether `lr`, `momentum` and `weight_decay` describe the optimiser completely."""
        return self.optimizer == "sgd" and not self.optimizer_options


class RoundsSection(Section):
    """How many rounds, with which clients, and when to stop waiting."""

    total: Count = Field(20, description="rounds to run")
    min_clients: Count = Field(2, description="clients needed to start, and replies needed in a round")
    clients_per_round: Annotated[int, Field(ge=0)] = Field(
        0, description="clients drawn for each round (seeded); 0: all that are connected"
    )
    memory_clients: Annotated[Literal["round", "all"], LATER] = Field(
        "round",
        description="whose features the class memory is made of, where it is made anew for the new model: those "
        "of the clients that trained in the `round`, or of `all` that are connected. With `clients_per_round` and "
        "skewed labels the memory of absent classes is old otherwise; the price is one more download and one "
        "forward pass on each of the others",
    )
    deadline_s: Positive = Field(600.0, description="seconds after which a round goes on without missing clients")
    wait_s: Positive = Field(300.0, description="seconds to wait for `min_clients` before giving up (exit code 5)")
    max_update_norm: Annotated[NonNegative, LATER] = Field(
        0.0,
        description="largest L2 norm of a client's change to the model; a larger update is refused and counts "
        "towards quarantine; 0: no limit",
    )
    max_examples: Annotated[int, Field(ge=0), LATER] = Field(
        0,
        description="most examples that a client counts for, however many it claims; 0: as many as it claims. "
        "But in rounds of three or more clients, one that claims more than 5 times the median counts for the "
        "median, and one that claims more than 50 times the median is left out",
    )
    outlier_ratio: Annotated[float, Field(ge=0), LATER] = Field(
        5.0,
        description="in rounds of three or more clients: an update whose L2 norm is more than this many times the "
        "median norm is scaled down to the median, or further the larger it is; one beyond 10 times that limit is "
        "left out. 0: no limit",
    )
    robust: Annotated[Literal["none", "clip", "trim"], LATER] = Field(
        "none",
        description="mean that a minority of hostile clients cannot move far. `clip`: each tensor of each update "
        "is scaled down to the round's median norm; `trim`: for each tensor, the clients farthest from the "
        "median are left out. Both keep a round's updates on disk until the last one arrives, and neither "
        "applies to fewer than three clients",
    )
    trim_share: Annotated[float, Field(gt=0, lt=0.5), LATER] = Field(
        0.2, description="share of a round's clients that `trim` leaves out, at least one"
    )
    rejoin_s: NonNegative = Field(
        10.0, description="seconds that a lost client has to reconnect and continue its assignment"
    )
    evaluate_every: Annotated[int, Field(ge=0)] = Field(
        1, description="evaluate after every n-th round and after the last; 0: only after the last"
    )
    stop_after: Annotated[int, Field(ge=0), LATER] = Field(
        0,
        description="end the run once so many evaluations in a row have not improved the primary metric on what "
        "the clients hold out; 0: run all rounds. If no client holds examples out, the server's test data "
        "decides, and its figures are then too good. Not with [[sessions]]",
    )
    keep: Annotated[Literal["last", "best"], LATER] = Field(
        "last",
        description="the model that the run ends with: that of its last round, or the best one by the measure of "
        "`stop_after`. Not `best` with [[sessions]]",
    )


class SplitSection(Section):
    """A simulated split of one data set over clients. Leave it out if every client has its own data."""

    # A task that changes the parts' examples derives a class with further tables: `Task.Split`.

    kind: Literal["dirichlet", "shards", "iid"] = Field("dirichlet", description="how labels are skewed")
    parts: Count = Field(4, description="number of parts")
    alpha: Positive = Field(0.1, description="concentration of `dirichlet`: smaller is more skewed")
    classes_per_part: Count = Field(
        2,
        description="for `shards`: label-sorted shards per part, so this many classes, or more if a shard spans "
        "two",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the split")
    sites: Annotated[Annotated[int, Field(ge=0)] | Literal["first"], LATER] = Field(
        0,
        description="number of parts that have examples of each class of [[sessions]]: those with most of them; "
        "the others get none. 0: leave the split as it is; `first`: the first part has all of them",
    )


class LinkSection(Section):
    """How clients send their updates to the server."""

    codec: Annotated[str, CODEC] = "fp32"


class InitSection(Section):
    """How the randomly drawn weights are changed before round 1."""

    kind: Literal["ordinary", "nio", "nio-exact"] = Field(
        "ordinary",
        description="`ordinary`: not at all; `nio` (cheap): each client learns one scale per tensor so that the "
        "gradients of its own sub-batches agree, and the server takes geometric means; `nio-exact`: learns scales "
        "that make the clients' gradients agree, in two exchanges per iteration",
    )
    gain: Positive = Field(1.0, description="factor on the drawn weights (not on biases), before anything else")
    min_rise: NonNegative = Field(
        0.3,
        description="learnt scales are used if they raise the mean cosine of the clients' gradients by at least "
        "this much; otherwise the weights stay as drawn",
    )
    report: bool = Field(
        False,
        description="measure cosine, norm and loss of the clients' gradients with `ordinary` too. Each client "
        "sends the direction of its gradient for this; with other kinds it does so once before and once after",
    )
    iters: Count = Field(40, description="iterations; the best scales of all iterations within `gamma` are used")
    lr: Positive = Field(0.05, description="step on the scales")
    clip: Positive = Field(1.0, description="limit on each slope")
    gamma: Positive = Field(
        30.0, description="limit on the mean gradient norm; above it, the norm is lowered instead"
    )
    objective: Literal["cosine", "cosine-norm", "cosine-square"] = Field(
        "cosine",
        description="what is maximised: the mean cosine, plus `gn_mul` times the sum of norms or of squared norms",
    )
    gn_mul: NonNegative = Field(1.0, description="weight of the norms in the objective")
    batch: Count = Field(32, description="examples per client and iteration")
    sub_batches: Annotated[int, Field(ge=2)] = Field(
        4,
        description="number of sub-batches that `nio` cuts a batch into; for `nio-exact` each client's batch is "
        "one",
    )
    overlap: Share = Field(0.2, description="how far sub-batches of `nio` overlap with their neighbours")
