"""The public test kit for methods: our own methods keep every promise, and one that breaks any is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fednc.common.methods import registry
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, ServerRound
from fednc.testing import MethodContract, promises

RUN = "a run gives the same bits twice"
ENTRY_POINT = "it is an entry point under its own name"


def broken_promises(name: str, *without: str) -> dict[str, str]:
    """The promises that a method breaks, each with its message."""
    contract = type("Contract", (MethodContract,), {"method": name})
    found = {}
    for what, test in promises(contract):
        if what not in without:
            try:
                test()
            except AssertionError as e:
                found[what] = str(e)
    return found


@pytest.mark.parametrize("name", registry.SHIPPED)
def test_our_own_methods_keep_every_promise(name: str) -> None:
    assert broken_promises(name, *(() if name in ("fednc", "scaffold") else (RUN,))) == {}


class Odd(Method):
    """Correct until a test breaks it."""

    name, version, preset = "odd", 1, PLAIN


def spoilt(monkeypatch: pytest.MonkeyPatch, **hooks: Any) -> dict[str, str]:
    """The promises that a method breaks with these hooks."""
    made = type("Spoilt", (Odd,), hooks)
    monkeypatch.setitem(registry._REGISTERED, "odd", lambda: made)
    return broken_promises("odd", RUN, ENTRY_POINT)  # registered in this process alone


class Endless(Addition):
    def penalties(self) -> dict[str, torch.Tensor]:
        return {"endless": torch.tensor(float("inf"))}


class Short(Addition):
    def outgoing(self, trained: Any) -> Any:
        return dict(list(trained.items())[1:])


def _local(addition: type[Addition]) -> Any:
    def local(self: Method, start: LocalRound) -> Addition:
        del self, start
        return addition()

    return local


def _forgets_state(self: Method, reached: ServerRound) -> ServerRound:
    del self
    return replace(reached, state={"other": torch.zeros(1)})


def _draws(self: Method, reached: ServerRound) -> ServerRound:
    del self
    return replace(reached, mean={name: value + torch.rand_like(value) for name, value in reached.mean.items()})


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ({"local": _local(Endless)}, "penalty endless is inf"),
        ({"local": _local(Short)}, "outgoing() has other names"),
        ({"step": _forgets_state}, "`state` of step()"),
        ({"step": _draws}, "the same round gives another step"),
    ],
)
def test_a_method_that_breaks_a_promise_is_found(
    hooks: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (said,) = spoilt(monkeypatch, **hooks).values()
    assert words in said
