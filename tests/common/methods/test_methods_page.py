"""docs/methods.md: its table says what the registry has, and the method that it shows runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fednc.client.app.flower_app import app as fednc_app
from fednc.common.methods import registry
from support.contract_run import config, run_on_local

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_table_lists_every_method_with_its_keys() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    wanted = []
    for name in registry.SHIPPED:
        method = registry.get(name)
        keys = ", ".join(f"`{key}`" for key in method.Options.model_fields)
        wanted.append((name, (method.__doc__ or "").splitlines()[0].rstrip("."), keys))
    assert rows == [(name, text, keys) for name, text, keys in wanted]


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = compile(block, "docs/methods.md", "exec", dont_inherit=True)
    exec(code, {"__name__": "halfway"})


def trained(folder: Path, **method: Any) -> dict[str, Tensor]:
    return run_on_local(config(method=method, rounds={"total": 1}), fednc_app, folder).state.model


@pytest.mark.usefixtures("halfway")
def test_the_method_of_the_page_trains(tmp_path: Path) -> None:
    plain, still = trained(tmp_path, name="fedavg"), trained(tmp_path, name="halfway", shrink=0, server_part=0)
    whole = trained(tmp_path, name="halfway", shrink=0, server_part=1)
    half = trained(tmp_path, name="halfway", shrink=0)
    small = trained(tmp_path, name="halfway", shrink=0.1, server_part=1)
    for key in plain:
        torch.testing.assert_close(whole[key], plain[key], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(half[key], (still[key] + plain[key]) / 2, atol=1e-6, rtol=1e-6)
        assert not torch.equal(plain[key], still[key])
    sizes = [sum(value.square().sum() for value in model.values()) for model in (small, plain)]
    assert sizes[0] < 0.9 * sizes[1], "the clients' term shrinks the model"


@pytest.mark.usefixtures("halfway")
def test_the_state_of_the_method_on_the_page_stays_at_the_server(tmp_path: Path) -> None:
    result = run_on_local(config(method={"name": "halfway"}, rounds={"total": 2}), fednc_app, tmp_path)
    assert result.state.kept.keys() == {f"halfway/{key}" for key in result.state.model}
    assert all(value.abs().max() > 0 for value in result.state.kept.values())
