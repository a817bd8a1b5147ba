"""fednc's Flower ClientApp: trains, sums features by class and evaluates, as the server asks.

Runs unchanged in our link and on stock Flower. What outlives a message is in `resident_run.py` (loaded once) and
in `client/training/round_state.py` (remembered from round to round).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fednc.client.app import probe as probing
from fednc.client.app.initialisation import ClientInitialisation
from fednc.client.app.personal import keep, personalise
from fednc.client.app.resident_run import Resident, check_allowed, resident
from fednc.client.app.withheld_sums import fitting_batch, sendable, sendable_data_sums
from fednc.client.link.work_hooks import CURRENT
from fednc.client.training import trainer
from fednc.client.training.round_state import KEPT, OPTIMISERS, Past, folder_of
from fednc.client.training.trainer import LocalResult, LocalWork
from fednc.common import seeds, versions
from fednc.common.config.run import RunConfig, parse_run_json
from fednc.common.errors import ProtocolError
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.memory_controls import with_own_means
from fednc.common.learning.optimisers import learning_rate
from fednc.common.learning.round_context import Guide
from fednc.common.methods import registry
from fednc.common.methods.api import Addition, LocalRound
from fednc.common.tasks import evaluation, temperature
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.round_guide import guide_at
from fednc.common.tasks.stages import Stage
from fednc.common.wire import arrays, messages, update_codec
from fednc.common.wire.messages import (
    CALIBRATE,
    CLASS_COUNTS,
    DATA,
    EXAMPLES,
    EXTRA,
    HELD_OUT,
    METRICS,
    MODEL,
    OWNED,
    PERSONAL,
    STATS,
    SUMS,
    UNNAMED,
    Instruction,
)
from fednc.common.wire.records import record_of

app = ClientApp()


Training = Generator[LocalWork, LocalResult, Message]  # gives the work, takes its result, returns the reply


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the global model; reply with the update and, if asked, the class sums of the trained model."""
    started = training(message, context)
    return reply_of(started, trainer.train(**vars(next(started))))


def reply_of(started: Training, result: LocalResult) -> Message:
    """The reply to a training that waits for the result of its work."""
    try:
        started.send(result)
    except StopIteration as e:
        reply: Message = e.value
        return reply
    raise RuntimeError("a training gives one piece of work")


def training(message: Message, context: Context) -> Training:
    """As `train`, but whoever called it does the work: a comparison trains several clients in one batch."""
    order, here, stage = _prepare(message, context)
    mine, _ = here.at(stage)
    guide = _guide(message, here, order.server_round, mine)
    past = _past(context, order)
    global_state = _load_model(message, here, past)
    if here.run.method.trains_with_memory and guide.memory_ramp > 0:
        guide = _own(guide, here, mine)
    owned = _owned(here, stage, mine)
    keys = [key for key in here.task.trained_keys(here.model, stage) if owned.get(key, 1)]
    section = stage.train
    batch = fitting_batch(mine.examples, max(section.batch, here.min_batch), here.min_batch)
    if batch != section.batch:
        section = section.model_copy(update={"batch": batch})
    number, rounds = stage.round_within(order.server_round), stage.last - stage.first + 1
    start = LocalRound(
        model=here.model,
        stepped=here.task.stepped_keys(here.model),
        received=messages.extra_of(message.content),
        state=past,
        train=section,
        number=order.server_round,
        lr=learning_rate(section, number, rounds),
    )
    added = [one for part in registry.parts(here.run.method) if (one := part.local(start)) is not None]
    torch.manual_seed(seeds.derive(here.run.seed, "train", order.server_round, here.node))
    result = yield LocalWork(
        task=here.task,
        model=here.model,
        data=mine,
        guide=guide.to(here.device),
        section=section,
        server_round=number,
        generator=seeds.generator(here.run.seed, "batches", order.server_round, here.node),
        hooks=CURRENT.get(),
        additions=added,
        frozen=set(global_state) - set(keys),
        rounds=rounds,
        optimisers=past.read(OPTIMISERS),
    )
    here.task.before_upload(here.model, global_state)
    content = RecordDict({MODEL: _encode(here, keys, global_state, past, added)})
    news = {key: value for one in added for key, value in one.finish().items()}
    if news:
        content[EXTRA] = arrays.to_record(news)
    if order.wants_sums:
        content[SUMS] = messages.sums_record(_sendable_sums(here, mine, stage, "local"))
    metrics: dict[str, float] = {f"loss/{name}": value for name, value in result.losses.items()}
    metrics |= {f"{OWNED}/{key}": count for key, count in owned.items() if count}
    _keep(here, past, result.optimisers)
    content[METRICS] = MetricRecord({EXAMPLES: mine.examples, "steps": result.steps, **metrics})
    return Message(content, reply_to=message)


@app.query("memory")
def memory(message: Message, context: Context) -> Message:
    """Reply with the class sums of the global model's features over this client's training data."""
    order, here, stage = _prepare(message, context)
    _load_model(message, here, _past(context, order, rounds=1))
    mine, _ = here.at(stage)
    content = RecordDict({SUMS: messages.sums_record(_sendable_sums(here, mine, stage, "global"))})
    content[METRICS] = MetricRecord({EXAMPLES: mine.examples, **_wish(context)})
    return Message(content, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Load the data and reply with how many examples there are, by class."""
    _, here, stage = _prepare(message, context)
    mine, held_out = here.at(stage)
    metrics = {EXAMPLES: mine.examples, HELD_OUT: held_out.examples}
    counts = MetricRecord({**metrics, CLASS_COUNTS: mine.count_K.tolist()})
    return Message(RecordDict({METRICS: counts}), reply_to=message)


@app.query("data_sums")
def data_sums(message: Message, context: Context) -> Message:
    """Reply with the task's additive sums of this client's training data; with none where they must not leave."""
    order, here, stage = _prepare(message, context)
    if order.server_round != 1:  # sums of other subsets would reveal their difference
        raise ProtocolError(f"sums of the data are asked for in round {order.server_round}, expected round 1")
    mine, _ = here.at(stage)
    sums = sendable_data_sums(here.task, mine, here.min_data_sum_examples)
    content = RecordDict({DATA: messages.data_record(sums)})
    content[METRICS] = MetricRecord({EXAMPLES: mine.examples})
    return Message(content, reply_to=message)


@app.query("probe")
def probe(message: Message, context: Context) -> Message:
    """Train each candidate of the probe for a few steps; reply with sums of their losses, and nothing else."""
    order, here, stage = _prepare(message, context)
    if here.run.probe is None or here.run.probe.picked or order.server_round != 1:
        raise ProtocolError("the server asks for a probe, but the run file has no [probe], or it is over")
    mine, _ = here.at(stage)
    totals = messages.data_of(message.content, here.task.no_data_sums()) if DATA in message.content else {}
    sums = probing.losses(here, mine, totals, CURRENT.get())
    content = RecordDict({STATS: arrays.to_record(sums)})
    content[METRICS] = MetricRecord({EXAMPLES: mine.examples})
    return Message(content, reply_to=message)


@app.query("init_gradient")
def init_gradient(message: Message, context: Context) -> Message:
    """Reply with direction and norm of this client's gradient at given scales of the initial weights."""
    return Message(_initialisation(message, context).gradient(message.content), reply_to=message)


@app.query("init_slope")
def init_slope(message: Message, context: Context) -> Message:
    """Reply with this client's share of the derivative of the initialisation's objective by these scales."""
    return Message(_initialisation(message, context).slope(message.content), reply_to=message)


@app.query("init_scales")
def init_scales(message: Message, context: Context) -> Message:
    """Reply with scales that this client learns alone."""
    return Message(_initialisation(message, context).scales(), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with additive statistics of the global model over the held-out examples."""
    order, here, stage = _prepare(message, context)
    mine, held_out = here.at(stage)
    guide = _read_out_guide(message, here, order, mine, context)
    guide = _own(guide, here, mine)
    batch, check = here.run.evaluate.batch, CURRENT.get().check
    stats = evaluation.evaluate(here.task, here.model, held_out, guide.to(here.device), batch, check)
    content = RecordDict({STATS: arrays.to_record(stats)})
    content[METRICS] = MetricRecord({EXAMPLES: held_out.examples, **_wish(context)})
    return Message(content, reply_to=message)


def _wish(context: Context) -> dict[str, int]:
    """Whether this client's own metrics may be listed by its name; nothing is said if they may."""
    return {UNNAMED: 1} if context.node_config.get("unnamed") else {}


@app.query("calibrate")
def calibrate(message: Message, context: Context) -> Message:
    """Reply with the log-loss over the held-out examples at each temperature of the grid."""
    order, here, stage = _prepare(message, context)
    mine, held_out = here.at(stage)
    if not (here.task.label_space and here.task.scores_classes):
        raise ProtocolError(f"the server asks for a temperature, but task {here.task.name!r} scores no classes")
    guide = _own(_read_out_guide(message, here, order, mine, context), here, mine).to(here.device)
    batch, check = here.run.evaluate.batch, CURRENT.get().check
    sums = temperature.losses_over(here.task, here.model, held_out, guide, batch, check)
    content = RecordDict({STATS: arrays.to_record(sums if held_out.examples else {})})
    content[METRICS] = MetricRecord({EXAMPLES: held_out.examples})
    return Message(content, reply_to=message)


@app.query("personal")
def personal(message: Message, context: Context) -> Message:
    """Fine-tune the final model, keep the result here, and reply with statistics of before and after."""
    order, here, stage = _prepare(message, context)
    settings = here.run.personal
    if settings is None:
        raise ProtocolError("the server asks for a personal model, but the run file has no [personal]")
    mine, held_out = here.at(stage)
    shared = _read_out_guide(message, here, order, mine, context)
    shared = replace(shared, temperature=order.temperature).to(here.device)
    own = _own(shared, here, mine)
    made = personalise(here, stage, settings, own, shared, CURRENT.get())
    keep(made, here, _state_folder(context))
    content = RecordDict({STATS: arrays.to_record(made.stats)})
    content[METRICS] = MetricRecord({EXAMPLES: held_out.examples, **_wish(context)})
    return Message(content, reply_to=message)


def _read_out_guide(
    message: Message, here: Resident, order: Instruction, mine: TaskData, context: Context
) -> Guide:
    """The guide of a model that is read out; loads the model too."""
    guide = _guide(message, here, order.server_round, mine)
    is_over = message.metadata.message_type in (CALIBRATE, PERSONAL)
    _load_model(message, here, _past(context, order, rounds=1, or_later=is_over))
    return guide


def _prepare(message: Message, context: Context) -> tuple[Instruction, Resident, Stage]:
    order = Instruction.of(message)
    run = parse_run_json(order.run_json, source="the server's run file")
    check_allowed(context, run)
    _check_versions(order, run)
    here = resident(context, run)
    return order, here, here.task.stage(order.server_round)


def _check_versions(order: Instruction, run: RunConfig) -> None:
    """Raises ProtocolError: the server runs other versions, which would damage the model without notice."""
    if len(order.versions) != 3:
        return  # an older server does not send them
    software, task, method = versions.of_run(run)
    problem = (
        versions.package_differs(software, order.versions[0], "the server")
        or versions.entry_differs("task", task, order.versions[1:2], "the server", is_server=False)
        or versions.entry_differs("method", method, order.versions[2:], "the server", is_server=False)
    )
    if problem:
        raise ProtocolError(problem)


def _initialisation(message: Message, context: Context) -> ClientInitialisation:
    order, here, stage = _prepare(message, context)
    mine, _ = here.at(stage)
    guide = _guide(message, here, order.server_round, mine)
    _load_model(message, here, _past(context, order))
    return ClientInitialisation(here, mine, guide, CURRENT.get())


def _guide(message: Message, here: Resident, server_round: int, mine: TaskData) -> Guide:
    etf_KD, memory = messages.frame_and_memory_of(message.content)
    return guide_at(here.task, etf_KD, memory, server_round, count_K=mine.count_K)


def _past(context: Context, order: Instruction, *, rounds: int = 0, or_later: bool = False) -> Past:
    """What this client remembers of the rounds before the instruction's; `rounds`: 1 for that one too."""
    before = order.server_round + rounds
    return Past(context.state, before, _state_folder(context), order.accepted, or_later=or_later)


def _state_folder(context: Context) -> Path | None:
    """Where this client keeps its state of this run; None if it keeps none."""
    settings = context.node_config
    place = str(settings.get("state", ""))
    name = str(settings.get("name", context.node_id))
    return folder_of(Path(place), context.run_id, name) if place else None


def _keep(here: Resident, past: Past, optimisers: Mapping[str, Tensor]) -> None:
    """Remember what stays on this client: tensors of the model, and the state of optimisers."""
    if optimisers:
        past.write(OPTIMISERS, optimisers)
    if here.local:
        state = here.model.state_dict()
        past.write(KEPT, {key: state[key].cpu() for key in here.local})


def _owned(here: Resident, stage: Stage, mine: TaskData) -> dict[str, int]:
    """Examples that train each tensor which is averaged over its owners; 0: it stays as it is and is not sent."""
    keys = here.task.trained_keys(here.model, stage)
    by_owner = [key for key in keys if here.task.combining(key) == Aggregation.OWNERS]
    owned = here.task.owned(mine) if by_owner else {}
    return {key: owned.get(key, 0) for key in by_owner}


def _load_model(message: Message, here: Resident, past: Past) -> dict[str, Tensor]:
    record = record_of(message.content, MODEL, ArrayRecord)
    state = arrays.from_record(record) if record else {}
    expected = here.task.shared_keys(here.model)
    if list(state) != expected:
        odd = sorted(set(state) ^ set(expected))[:5]
        raise ProtocolError(
            f"the server's model does not belong to this task: its keys differ, for instance {odd}"
        )
    here.model.load_state_dict({**here.local, **past.read(KEPT), **state}, strict=False)
    return state


def _encode(
    here: Resident, keys: list[str], global_state: dict[str, Tensor], past: Past, added: list[Addition]
) -> ArrayRecord:
    state = here.model.state_dict()
    trained: Mapping[str, Tensor] = {key: state[key] for key in keys}
    for one in added:
        trained = one.outgoing(trained)
    update, left = update_codec.encode_update(trained, global_state, here.run.link.codec, past.read("residual"))
    if left:
        past.write("residual", left)
    return update


def _own(guide: Guide, here: Resident, mine: TaskData) -> Guide:
    """The guide with this client's own class means, if the method uses them instead of the class memory."""
    if here.run.method.memory_source != "own" or not here.run.method.uses_memory:
        return guide
    return with_own_means(guide, _sums(here, mine, torch.ones_like(mine.count_K, dtype=torch.bool)))


def _sums(here: Resident, mine: TaskData, summed_K: Tensor, *, moment: bool = False) -> ClassSums:
    batch, hooks = here.run.evaluate.batch, CURRENT.get()
    return trainer.class_sums(here.task, here.model, mine, batch, hooks, summed_K, moment=moment)


def _sendable_sums(here: Resident, mine: TaskData, stage: Stage, model: str) -> ClassSums:
    """The class sums of a model that may leave this machine; what stays is logged once in a stage.

    Second moments go in the first stage only: later sessions bring few examples, and the features are frozen then.
    """
    told = here.told.setdefault(stage.number, set())
    summed_K = sendable(mine.having_K, here.min_sum_examples, here.task.class_names, told)
    moment = here.run.method.needs_moments(model, is_first=stage.is_first)
    return _sums(here, mine, summed_K, moment=moment)
