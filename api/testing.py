"""The contract of every task and method as tests: for the CI of their authors, and for `fednc plugins check`.

    from fednc.testing import MethodContract, TaskContract

    class TestWards(TaskContract):
        task = "wards"                   # installed, as an entry point of group fednc.tasks
        data = "csv:tests/patients.csv"  # a data spec that the task reads

    class TestHalfway(MethodContract):
        method = "halfway"               # installed, as an entry point of group fednc.methods

pytest collects the classes and runs each method as a test. Nothing here imports pytest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fednc import in_process
from fednc.common import plugins, seeds
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.learning.round_context import Guide
from fednc.common.plugins import TASKS
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Batch, Task, TaskData, add_stats
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.round_guide import guide_at
from fednc.common.wire import arrays, messages
from fednc.method_contract import MethodContract, must
from fednc.ops.export import formats, graph
from fednc.ops.export.description import describe
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog

__all__ = ["Case", "MethodContract", "TaskContract", "promises"]

_UNKNOWN_KEY = "no_such_option_anywhere"
_TOLERANCE = 1e-4  # relative: float sums over other batches round differently
_ROUNDING = 0.05  # of raw values: bytes hold a pixel to half of 1/255, which is then divided by its deviation
_KINDS = (torch.int64, torch.float64)  # allowed types of statistics


@dataclass(frozen=True)
class Case:
    """A task with the data and model that a client has in round 1."""

    run: RunConfig
    task: Task
    data: TaskData
    model: nn.Module
    guide: Guide

    @property
    def batch(self) -> int:
        """Examples per batch."""
        return min(self.run.train.batch, max(1, self.data.examples))

    def train_batches(self) -> list[Batch]:
        """One epoch."""
        return list(self.data.train_batches(self.batch, seeds.generator(0, "contract")))

    def statistics(self, data: TaskData) -> Stats:
        """The statistics over all of `data`."""
        total: Stats = {}
        self.model.eval()
        with torch.no_grad():
            for batch in data.eval_batches(self.batch):
                add_stats(total, self.task.statistics(self.model, batch, self.guide))
        return total


class TaskContract:
    """The contract of a task. Derive a class, name the task and some of its data, and let pytest collect it.

    Attributes:
        task: name of the task's entry point.
        data: spec of data that the task reads; a few hundred examples are enough.
        options: keys of [task]; None: those that the task suggests for the data, with its other tables.
        tables: other tables of the run file, for example {"method": {"name": "fedavg"}}.
        exports: set it to False if the task's prediction cannot be one graph, because it branches on values.
    """

    task: ClassVar[str] = ""
    data: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any] | None] = None
    tables: ClassVar[Mapping[str, Any]] = {}
    exports: ClassVar[bool] = True

    # ---- name and options ------------------------------------------------------------------------------------

    def test_it_is_an_entry_point_under_its_own_name(self) -> None:
        """Servers and clients compare name and version."""
        plugin = plugins.find(TASKS, self.task)
        loaded = discovery.load(plugin)
        must(type(loaded.version) is int and loaded.version >= 1, f"version is {loaded.version!r}, not 1 or more")

    def test_its_options_refuse_unknown_keys(self) -> None:
        """A typo in a run file must be noticed."""
        given = {**self._tables()["task"], _UNKNOWN_KEY: 1}
        try:
            discovery.get(parse_run({**self._tables(), "task": given}))
        except ConfigError as e:
            must(_UNKNOWN_KEY in str(e), f"the error does not name the key: {e}")
        else:
            raise AssertionError("Options accept keys that they do not have: derive them from TaskOptions")

    def test_its_description_of_preprocessing_is_json(self) -> None:
        """It is stored with the exported model."""
        json.dumps(self._case().task.preprocessing(), allow_nan=False)

    # ---- model and loss --------------------------------------------------------------------------------------

    def test_the_same_seed_gives_the_same_model(self) -> None:
        """Clients and server build their models independently."""
        case = self._case()
        one, other = (_seeded(case.task.build_model).state_dict() for _ in range(2))
        must(list(one) == list(other), "two models have different keys")
        for key, value in one.items():
            must(_same_bits(value, other[key]), f"{key} differs between two models of the same seed")

    def test_the_keys_that_are_sent_arrive_unchanged(self) -> None:
        """They are sent as arrays and loaded into another model without changing a bit."""
        case = self._case()
        state, keys = case.model.state_dict(), case.task.shared_keys(case.model)
        must(bool(keys), "no key is sent: clients would learn nothing from each other")
        must(len(set(keys)) == len(keys), "a key is sent twice")
        must(set(keys) <= set(state), f"not in the state dict: {sorted(set(keys) - set(state))[:5]}")
        back = arrays.from_record(arrays.to_record({key: state[key] for key in keys}))
        model = case.task.build_model()
        model.load_state_dict(back, strict=False)
        for key in keys:
            must(_same_bits(model.state_dict()[key], state[key]), f"{key} has changed after sending it")

    def test_the_loss_is_finite_and_differentiable(self) -> None:
        """It is a scalar with a finite gradient that reaches parameters that are sent."""
        case = self._case()
        case.model.train()
        case.model.zero_grad()
        loss, parts = case.task.loss(case.model, case.train_batches()[0], case.guide)
        must(loss.shape == (), f"the loss has shape {tuple(loss.shape)}, not that of a scalar")
        value = float(loss.detach())
        must(math.isfinite(value), f"the loss is {value}")
        must(
            all(math.isfinite(float(part)) for part in parts.values()),
            f"a part of the loss is not finite: {parts}",
        )
        torch.autograd.backward(loss)
        shared = set(case.task.shared_keys(case.model))
        grads = [p.grad for name, p in case.model.named_parameters() if name in shared and p.grad is not None]
        must(all(bool(grad.isfinite().all()) for grad in grads), "a gradient is not finite")
        must(any(bool(grad.any()) for grad in grads), "the loss depends on no parameter that is sent")

    # ---- data ------------------------------------------------------------------------------------------------

    def test_holding_out_takes_each_example_once(self) -> None:
        """Training and held-out data are disjoint and together complete; the seed determines both."""
        whole = self._case().data
        rest, held = whole.hold_out(0.25, 7)
        must(
            rest.examples + held.examples == whole.examples,
            "training and held-out examples do not add up to the data",
        )
        must(held.examples > 0, "a share of 0.25 holds nothing out")
        must(rest.examples > 0, "nothing is left to train on")
        must(_examples(rest) + _examples(held) == _examples(whole), "an example is in both parts, or in neither")
        again, _ = whole.hold_out(0.25, 7)
        must(_examples(again) == _examples(rest), "the same seed holds out other examples")
        nothing, none = whole.hold_out(0.0, 7)
        must((nothing.examples, none.examples) == (whole.examples, 0), "a share of 0 holds something out")

    def test_an_epoch_has_every_example_once_in_an_order_of_the_generator(self) -> None:
        """A restarted client must train on the same batches."""
        case = self._case()
        first, again = case.train_batches(), case.train_batches()
        total = sum(case.task.batch_size_of(batch) for batch in first)
        must(total == case.data.examples, f"an epoch has {total} examples, the data {case.data.examples}")
        must(list(map(_digest, first)) == list(map(_digest, again)), "the same generator gives other batches")
        evaluated = sum(case.task.batch_size_of(batch) for batch in case.data.eval_batches(case.batch))
        must(evaluated == case.data.examples, f"evaluation has {evaluated} examples of {case.data.examples}")

    # ---- statistics and metrics ------------------------------------------------------------------------------

    def test_adding_no_statistics_changes_nothing(self) -> None:
        """The server starts its sums with them."""
        case = self._case()
        none, some = case.task.no_statistics(), case.statistics(case.data)
        must(set(none) == set(some), f"names differ: {sorted(set(none) ^ set(some))}")
        for name, value in none.items():
            must(not bool(value.any()), f"{name} is not zero in no_statistics()")
            must(value.dtype in _KINDS, f"{name} is {value.dtype}; statistics are int64 or float64")
            alike = (value.dtype, value.shape) == (some[name].dtype, some[name].shape)
            must(alike, f"{name} has another type or shape in no_statistics() than in statistics()")
            must(some[name].device.type == "cpu", f"{name} is not on the CPU")
        total = add_stats({key: value.clone() for key, value in none.items()}, some)
        must(all(_same_bits(total[name], some[name]) for name in some), "adding no statistics changes some")

    def test_statistics_of_two_parts_add_up_to_those_of_the_whole(self) -> None:
        """So evaluating many clients gives the same as if their data were in one place."""
        case = self._case()
        parts = case.data.hold_out(0.5, 3)
        whole, added = case.statistics(case.data), case.task.no_statistics()
        for part in parts:
            added = add_stats(added, case.statistics(part))
        for name, value in whole.items():
            must(_nearly(value, added[name]), f"{name}: {added[name]} from two parts, {value} from the whole")

    def test_honest_statistics_pass_its_own_check(self) -> None:
        """Otherwise honest clients would be treated as hostile."""
        case = self._case()
        fine = case.task.check_statistics(case.statistics(case.data), case.data.examples)
        must(fine, "check_statistics() finds no example in statistics of all the data")

    def test_metrics_are_numbers(self) -> None:
        """They are numbers by name, finite if there are examples; without examples they must not fail."""
        case = self._case()
        metrics = case.task.measure(case.statistics(case.data))
        odd = {name: value for name, value in metrics.items() if not isinstance(value, int | float)}
        must(not odd, f"not numbers: {odd}")
        must(bool(metrics), "there are no metrics")
        must(metrics.get("examples") == case.data.examples, f"examples is {metrics.get('examples')}")
        case.task.measure(case.task.no_statistics())

    # ---- sums of the data before round 1 -----------------------------------------------------------------------

    def test_sums_of_the_data_add_up_and_pass_its_own_check(self) -> None:
        """Only for a task that declares some in no_data_sums()."""
        case = self._case()
        none = case.task.no_data_sums()
        if not none:
            return
        whole, added = case.task.data_sums(case.data, 1), {name: zero.clone() for name, zero in none.items()}
        for part in case.data.hold_out(0.5, 3):
            added = add_stats(added, case.task.data_sums(part, 1))
        messages.check_data(whole, none)
        case.task.check_data_sums(whole, case.data.examples)
        case.task.check_data_sums(none, 0)
        for name, value in whole.items():
            must(_nearly(value, added[name]), f"{name}: {added[name]} from two parts, {value} from the whole")
        many = {name: value * 2 for name, value in whole.items()}
        must(any(bool(value.any()) for value in whole.values()), "all sums of the data are zero")
        try:
            case.task.check_data_sums(many, case.data.examples)
        except ProtocolError:
            return
        raise AssertionError("check_data_sums() accepts sums of twice as many examples as were announced")

    # ---- a whole run -----------------------------------------------------------------------------------------

    def test_a_run_gives_the_same_bits_twice_and_the_exported_model_predicts_with_them(self) -> None:
        """Runs two rounds with two clients, then loads the model as `fednc predict` does."""
        one, other = self._trained(), self._trained()
        ours, theirs = one.model.state_dict(), other.model.state_dict()
        changed = [key for key, value in ours.items() if not _same_bits(value, theirs[key])]
        must(not changed, f"two runs of the same seed differ in {changed[:5]}")
        before = self._case().model.state_dict()
        moved = any(not _same_bits(one.model.model.state_dict()[key], value) for key, value in before.items())
        must(moved, "a run of two rounds has trained nothing")
        task, model = one.model.task, one.model.model
        total: Stats = {}
        data = task.load_train(self.data, None, None)
        with torch.no_grad():
            for batch in data.eval_batches(one.run.evaluate.batch):
                stats = task.statistics(model, batch, one.model.guide)
                again = task.statistics(model, batch, one.model.guide)
                must(
                    all(_same_bits(stats[key], again[key]) for key in stats), "evaluating twice gives two results"
                )
                add_stats(total, stats)
        must(math.isfinite(task.measure(total).get("loss", 0.0)), "the loss of the trained model is not finite")

    def test_the_exported_graph_gives_the_scores_of_the_model(self) -> None:
        """torch.export captures preprocessing and prediction; onnxruntime gives the same, if it is installed.

        A task whose `graph_input` says why it cannot be ONNX is refused with that reason.
        """
        if not self.exports:
            return
        trained = self._trained().model
        given = trained.task.graph_input()
        batch = next(iter(trained.task.load_train(self.data, None, None).eval_batches(3)))
        inputs = trained.task.inputs_of(batch)
        raw = given.raw_of(inputs)
        must(
            given.shape in (None, tuple(raw.shape[1:])), f"graph_input() has shape {given.shape}, not that of data"
        )
        far = formats.difference(inputs.numpy(), given.prepare(raw).numpy())  # a missing value is NaN in both
        must(far <= _ROUNDING, f"prepare() of raw_of() is {far:.2g} away")
        sample = graph.sample_inputs(trained, raw)
        description = describe(trained, tuple(raw.shape[1:]), 2, str(raw.dtype).removeprefix("torch."))
        formats.to_torch_export(trained, sample, description)  # raises if the graph gives other scores
        if given.no_onnx:
            try:
                formats.to_onnx(trained, sample, description)
            except ConfigError as e:
                must(given.no_onnx in str(e), f"the error does not give the reason: {e}")
            else:
                raise AssertionError("graph_input() says that it cannot be ONNX, but an ONNX file was made")
        elif find_spec("onnxruntime") and find_spec("onnxscript"):
            formats.to_onnx(trained, sample, description)

    # ---- helpers ---------------------------------------------------------------------------------------------

    @classmethod
    def _tables(cls) -> dict[str, Any]:
        if not cls.task or not cls.data:
            raise ConfigError(f"{cls.__name__}: set `task` to the task to test, and `data` to its data")
        if "_read" not in cls.__dict__:
            options, tables = cls.options, cls.tables
            if options is None:
                found = discovery.task_class(cls.task).suggest_options(cls.data)
                options, tables = found.options, {**found.tables, **tables}
            cls._read = {**tables, "task": {**options, "name": cls.task}}  # type: ignore[attr-defined]
        read: dict[str, Any] = cls._read  # type: ignore[attr-defined]
        return read

    @classmethod
    def _case(cls) -> Case:
        """A new case for each test, so that no test can change another's model."""
        run = parse_run(cls._tables())
        prepared = FederatedRun(run, EventLog())
        data = prepared.task.load_train(cls.data, None, None)
        must(data.examples >= 4, f"{cls.data}: {data.examples} examples are too few to test with")
        model = prepared.task.build_model()
        model.load_state_dict(prepared.state.model, strict=False)
        memory = prepared.state.memory
        guide = guide_at(prepared.task, prepared.frame.etf_KD, memory, 1, count_K=data.count_K)
        return Case(run, prepared.task, data, model, guide)

    @classmethod
    def _trained(cls) -> in_process.Result:
        tables = cls._tables()
        rounds = {**tables.get("rounds", {}), "total": 2, "min_clients": 2}
        clients = {"contract-a": cls.data, "contract-b": cls.data}
        values = {**tables, "rounds": rounds, "split": None}
        return in_process.run(values, clients, device="cpu", progress=False)


def promises(contract: type[TaskContract | MethodContract]) -> Iterator[tuple[str, Callable[[], None]]]:
    """(description, test) of each part of the contract, in the order of this file."""
    made = contract()
    for name in vars(TaskContract if isinstance(made, TaskContract) else MethodContract):
        if name.startswith("test_"):
            yield name.removeprefix("test_").replace("_", " "), getattr(made, name)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(11)
    return build()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and _bytes(one) == _bytes(other)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _nearly(one: Tensor, other: Tensor) -> bool:
    if one.dtype == torch.int64:
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)


def _tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, which may be nested."""
    if isinstance(batch, Tensor):
        return [batch]
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return [tensor for each in inner for tensor in _tensors(each)]


def _digest(batch: Batch) -> str:
    return hashlib.sha256(b"".join(map(_bytes, _tensors(batch)))).hexdigest()


def _examples(data: TaskData) -> Counter[str]:
    """How often each example occurs in `data`, by its content."""
    return Counter(_digest(batch) for batch in data.eval_batches(1))
