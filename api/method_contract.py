"""What every method promises, as tests; part of `fednc.testing`, and run by `fednc plugins check`.

The steps are tried on a small model without a task; the last test is a whole run on made-up images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fednc import in_process
from fednc.common import plugins, seeds
from fednc.common.config.run import parse_run
from fednc.common.config.tables import TrainSection
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.methods.api import Addition, LocalRound, Method, ServerRound
from fednc.common.plugins import METHODS

_UNKNOWN_KEY = "no_such_key_anywhere"
_CLIENTS, _CLASSES, _EXAMPLES, _SIZE = 2, 3, 48, 8  # of the whole run
Named = Mapping[str, Tensor]


class MethodContract:
    """The promises of a method. Derive, name the method, and let pytest collect the class.

    Attributes:
        method: name of the method's entry point.
        options: keys of [method]; those without a default must be here.
    """

    method: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}

    # ---- what it is ------------------------------------------------------------------------------------------

    def test_it_is_an_entry_point_under_its_own_name(self) -> None:
        """Name and version are what servers and clients compare."""
        loaded = registry.load(plugins.find(METHODS, self.method))
        must(type(loaded.version) is int and loaded.version >= 1, f"version is {loaded.version!r}, not 1 or more")

    def test_its_options_refuse_unknown_keys(self) -> None:
        """A typing error in a run file must not go unnoticed."""
        try:
            parse_run({"method": {**self._table(), _UNKNOWN_KEY: 1}})
        except ConfigError as e:
            must(_UNKNOWN_KEY in str(e), f"the error does not name the key: {e}")
        else:
            raise AssertionError("Options accept keys that they do not have: derive them from Section")

    # ---- a client --------------------------------------------------------------------------------------------

    def test_what_it_adds_to_the_loss_is_finite_and_differentiable(self) -> None:
        """Each penalty is a scalar, and has a gradient wherever it depends on parameters."""
        model = _model()
        addition = self._addition(model, _Remembered())
        for name, term in addition.penalties().items():
            must(term.shape == (), f"penalty {name} has shape {tuple(term.shape)}, not that of a scalar")
            must(bool(term.isfinite()), f"penalty {name} is {float(term.detach())} before training")
            if term.requires_grad:
                torch.autograd.backward(term, retain_graph=True)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        odd = [name for name, grad in grads.items() if not bool(grad.isfinite().all())]
        must(not odd, f"the gradient of the penalties is not finite in {odd[:3]}")

    def test_what_a_client_sends_has_the_form_of_what_was_trained(self) -> None:
        """So have the changes of the tensors sent beside the model, in two rounds in a row."""
        model, state = _model(), _Remembered()
        beside = self._made().beside(_params(model))
        for _ in range(2):
            addition = self._addition(model, state)
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.1)
            addition.on_gradients()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            trained = _params(model)
            _must_match(addition.outgoing(trained), trained, "outgoing()")
            _must_match(addition.finish(), beside, "finish()")

    # ---- the server ------------------------------------------------------------------------------------------

    def test_a_step_keeps_names_shapes_and_types_and_changes_nothing_in_place(self) -> None:
        """Two steps, the second from the result of the first; the same tensors give the same bits."""
        method, before = self._made(), _params(_model())
        beside, state = method.beside(before), method.kept(before)
        for number in range(2):
            reached = _reached(before, beside, state, number)
            given = _copies(reached)
            ours, again = method.step(reached), method.step(_reached(before, beside, state, number))
            for what, values in _copies(reached).items():
                changed = [name for name, value in values.items() if not value.equal(given[what][name])]
                must(not changed, f"step() changes `{what}` in place: {changed[:3]}")
            _must_match(ours.mean, before, "`mean` of step()")
            _must_match(ours.beside, beside, "`beside` of step()")
            _must_match(ours.state, state, "`state` of step(), which kept() creates,")
            odd = [name for name, value in ours.mean.items() if not value.equal(again.mean[name])]
            must(not odd, f"the same round gives another step in {odd[:3]}")
            before, beside, state = dict(ours.mean), dict(ours.beside), dict(ours.state)

    # ---- a whole run -----------------------------------------------------------------------------------------

    def test_a_run_gives_the_same_bits_twice(self) -> None:
        """Two rounds of two clients on made-up images."""
        with tempfile.TemporaryDirectory() as folder:
            spec = _images(Path(folder) / "images.npz")
            one, other = (self._trained(spec) for _ in range(2))
        changed = [name for name, value in one.items() if not value.equal(other[name])]
        must(not changed, f"two runs of the same seed differ in {changed[:3]}")
        odd = [name for name, value in one.items() if not bool(value.isfinite().all())]
        must(not odd, f"after two rounds {odd[:3]} is not finite")

    # ---- helpers ---------------------------------------------------------------------------------------------

    @classmethod
    def _table(cls) -> dict[str, Any]:
        if not cls.method:
            raise ConfigError(f"{cls.__name__}: say which `method` is tested")
        return {**cls.options, "name": cls.method}

    @classmethod
    def _made(cls) -> Method:
        """The method as both sides make it from a run file."""
        section = parse_run({"method": cls._table()}).method
        method = registry.get(cls.method)
        working = [part for part in section.parts if isinstance(part, method)]
        return working[0] if working else method(method.Options())  # its options switch it off

    @classmethod
    def _addition(cls, model: nn.Module, state: _Remembered) -> Addition:
        method, params = cls._made(), _params(model)
        start = LocalRound(
            model=model,
            stepped=frozenset(params),
            received=method.beside(params),
            state=state,
            train=TrainSection(),
            number=1,
            lr=TrainSection().lr,
        )
        return method.local(start) or Addition()

    @classmethod
    def _trained(cls, spec: str) -> dict[str, Tensor]:
        run = {
            "task": {"classes": [str(i) for i in range(_CLASSES)], "size": _SIZE, "channels": 1, "width": 8},
            "frame": {"dim": 8},
            "method": cls._table(),
            "train": {"batch": 16},
            "rounds": {"total": 2, "min_clients": _CLIENTS},
        }
        clients = {f"contract-{index}": spec for index in range(_CLIENTS)}
        result = in_process.run(run, clients, device="cpu", progress=False)
        return dict(result.model.model.state_dict())


class _Remembered:
    """What a client remembers, in memory."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Tensor]] = {}

    def read(self, kind: str) -> dict[str, Tensor]:
        """See ClientState."""
        return self._kinds.get(kind, {})

    def write(self, kind: str, tensors: Named) -> None:
        """See ClientState."""
        self._kinds[kind] = {name: value.detach().clone() for name, value in tensors.items()}


def must(holds: bool, otherwise: str) -> None:
    """An assertion that says in words what is wrong, also where Python runs with -O."""
    if not holds:
        raise AssertionError(otherwise)


def _model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def _params(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _reached(before: Named, beside: Named, state: Named, number: int) -> ServerRound:
    draw = seeds.generator(number, "contract")

    def near(tensors: Named) -> dict[str, Tensor]:
        return {name: value + 0.1 * torch.randn(value.shape, generator=draw) for name, value in tensors.items()}

    return ServerRound(
        before=before,
        mean=near(before),
        beside=beside,
        news={name: value - beside[name] for name, value in near(beside).items()},
        state=state,
        share=1.0,
        examples=(40, 60),
        train=TrainSection(),
    )


def _copies(reached: ServerRound) -> dict[str, dict[str, Tensor]]:
    kinds = ("before", "mean", "beside", "news", "state")
    return {kind: {name: value.clone() for name, value in getattr(reached, kind).items()} for kind in kinds}


def _must_match(found: Named, wanted: Named, what: str) -> None:
    odd = sorted(set(found) ^ set(wanted))
    must(not odd, f"{what} has other names than it should: {odd[:3]}")
    for name, value in wanted.items():
        form, ours = (value.dtype, tuple(value.shape)), (found[name].dtype, tuple(found[name].shape))
        must(form == ours, f"{what}: {name} is {ours[0]} {list(ours[1])}, not {form[0]} {list(form[1])}")
        must(bool(found[name].isfinite().all()), f"{what}: {name} is not finite")


def _images(path: Path) -> str:
    """Made-up images of three classes that can be told apart; their data spec."""
    draw = np.random.default_rng(0)
    label = np.arange(_EXAMPLES) % _CLASSES
    grey = draw.integers(0, 60, (_EXAMPLES, _SIZE, _SIZE)) + 80 * label[:, None, None]
    np.savez(
        path, x_train=grey.astype(np.uint8), y_train=label, x_test=grey[:9].astype(np.uint8), y_test=label[:9]
    )
    return f"npz:{path}"
