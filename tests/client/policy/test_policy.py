"""The owner's policy without a link: its file, its records, its log, and what the command shows."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fednc.cli.main import app as command
from fednc.client.app import resident_run
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost
from fednc.client.app.withheld_sums import fitting_batch
from fednc.client.policy import preview
from fednc.client.policy.ledger import Ledger, data_fingerprint
from fednc.client.policy.owner import Owner
from fednc.client.policy.rules import SENTENCES, OwnerRefusalError, Policy, Quota, read_policy
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.wire.messages import METRICS, TRAIN
from support.clients_with_policy import STRICT, Site, open_but, strict_but
from support.hostile.image_server import content_of, hostile_run, instruction, welcome

RUN = hostile_run(train={"batch": 8})
A, B = "a" * 64, "b" * 64


# ---- the file ------------------------------------------------------------------------------------------------


def test_the_strict_example_is_read_and_allows_no_method_that_needs_class_sums() -> None:
    strict, folder = read_policy(STRICT)
    assert folder == STRICT.with_name("strict.toml.state")
    assert strict == strict_but()
    assert strict.runs.methods
    for name in strict.runs.methods:
        assert name in registry.SHIPPED
        assert not hostile_run(
            method={"name": name, "readout": registry.get(name).preset["readout"]}
        ).method.uses_memory


def test_an_empty_policy_allows_neither_gradients_nor_class_sums_nor_subsets() -> None:
    allowed = {key for key, value in Policy().allow.model_dump().items() if value}
    assert allowed == {"evaluation", "manifest", "name_in_history"}
    assert Policy().runs.pin_first
    assert Policy().quota.runs_per_day == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[floor]\nbatches = 3", "floor.batches: no such key; docs/deploy.md lists them all"),
        ("[floor]\nbatch = -1", "floor.batch: "),
        ("[runs]\ndigests = ['abc']", "runs.digests.0: "),
        ("[floor", "not TOML"),
    ],
)
def test_a_policy_with_a_wrong_key_or_value_is_an_error_that_names_it(
    text: str, wanted: str, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        read_policy(tmp_path / "p.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


# ---- what is remembered --------------------------------------------------------------------------------------


def test_only_the_owner_can_read_the_records_and_they_outlive_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "records"
    first = Ledger(folder)
    quota = Quota(runs_per_day=2, queries_per_day=3, queries=4)
    assert [first.admit_run("data", digest, "run", quota, pin=False) for digest in (A, B)] == ["", ""]
    assert [first.count_query("data", quota) for _ in range(3)] == ["", "", ""]
    again = Ledger(folder)
    assert again.secret == first.secret
    assert again.admit_run("data", A, "run", quota, pin=False) == "", "the same run, as after a restart"
    assert again.admit_run("data", A, "run again", quota, pin=False) == "runs-quota"
    assert again.count_query("data", quota) == "queries-quota"
    assert again.count_query("other data", quota) == ""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"records": 0o700, "state.json": 0o600, "lock": 0o600}


def test_a_new_day_resets_daily_quotas_only_and_days_never_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, ledger, quota = time.time(), Ledger(tmp_path), Quota(queries_per_day=2, queries=3)
    assert [ledger.count_query("data", quota) for _ in range(3)] == ["", "", "queries-quota"]
    monkeypatch.setattr(time, "time", lambda: now - 5 * 86400)
    assert ledger.count_query("data", quota) == "queries-quota", "setting the clock back gains nothing"
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    assert [ledger.count_query("data", quota) for _ in range(2)] == ["", "queries-quota"]


def test_admitting_without_keeping_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for digest in (A, B):
        assert ledger.admit_run("data", digest, "run", Quota(), pin=True, keep=False) == ""
    assert ledger.admit_run("data", A, "run", Quota(), pin=True) == ""
    assert ledger.admit_run("data", B, "run", Quota(), pin=True, keep=False) == "pinned"


def test_damaged_records_are_an_error(tmp_path: Path) -> None:
    Ledger(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        Ledger(tmp_path)


def test_data_is_identified_by_content_not_by_path(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "ill").mkdir(parents=True)
        (tmp_path / name / "ill" / "1.png").write_bytes(b"image")
    one, other = (data_fingerprint(f"folder:{tmp_path / name}") for name in ("one", "other"))
    assert one == other
    (tmp_path / "other" / "ill" / "1.png").write_bytes(b"imagf")
    assert data_fingerprint(f"folder:{tmp_path / 'other'}") != one
    assert data_fingerprint("digits") != data_fingerprint("hf:digits")
    file = tmp_path / "one" / "ill" / "1.png"
    assert data_fingerprint(f"npz:{file}") == data_fingerprint(f"npz:{file.rename(tmp_path / 'moved.png')}")


def test_quotas_survive_a_restart_and_count_for_a_copy_of_the_data(site: Site, tmp_path: Path) -> None:
    site.policy = open_but(quota={"queries": 1})
    host = site.join(RUN)
    host.work(instruction(content_of(RUN), TRAIN))
    host.leave()
    copy = tmp_path / "copy.npz"
    copy.write_bytes(site.images.read_bytes())
    moved = replace(site)
    moved.data = f"npz:{copy}"
    with pytest.raises(OwnerRefusalError, match="queries-quota"):
        moved.join(RUN).work(instruction(content_of(RUN, 2), TRAIN))


def test_holding_out_another_share_is_refused(site: Site) -> None:
    site.join(RUN).leave()
    with pytest.raises(ConfigError, match=r"--val-share 0\.2: 0\.1 of this data was held out"):
        replace(site, val_share=0.2).join(RUN)


# ---- which examples ------------------------------------------------------------------------------------------


@given(examples=st.integers(1, 500), batch=st.integers(1, 200), least=st.integers(0, 60))
def test_no_batch_of_an_epoch_is_smaller_than_the_minimum(examples: int, batch: int, least: int) -> None:
    found = fitting_batch(examples, max(batch, least), least)
    assert found >= batch
    last = examples % found
    assert last == 0 or last >= min(least, examples) or least <= 1
    assert least > 1 or found == batch


def trained(host: AppHost, seed: int = 0) -> dict[str, Any]:
    run = hostile_run(seed=seed, train={"batch": 8})
    host.prepare(welcome(run, f"run-{seed}"))
    reply = host.work(instruction(content_of(run), TRAIN, f"run-{seed}"))
    metrics = reply.content[METRICS]
    host.leave()
    return dict(metrics)


def test_a_minimum_batch_changes_the_steps_and_zero_changes_nothing(site: Site) -> None:
    steps = [trained(AppHost(replace(site.config, min_batch=least), app))["steps"] for least in (0, 6, 12)]
    assert steps == [4 * 6, 4 * 5, 4 * 3]  # 45 examples: 8 leave 5; 9 leave none; 15 leave none


def test_the_owners_secret_decides_which_examples_are_held_out(site: Site) -> None:
    def held_out(seed: int, **settings: Any) -> bytes:
        host = AppHost(replace(site.config, **settings), app)
        run = RUN.model_copy(update={"seed": seed})
        host.prepare(welcome(run, f"{seed}/{settings}"))
        assert host._context is not None
        pixels: torch.Tensor = resident_run.resident(host._context, run).held_out.pixel_NCHW  # type: ignore[attr-defined]
        return pixels.numpy().tobytes()

    assert held_out(1) != held_out(2)
    assert held_out(1, secret=A) == held_out(2, secret=A) != held_out(1, secret=B)


# ---- the command ---------------------------------------------------------------------------------------------


def test_a_dry_run_finds_what_the_policy_would_refuse_and_records_nothing(site: Site) -> None:
    rules = strict_but()
    owner = Owner(rules, Ledger(site.records), site.data, 0.1)
    host = preview.PolicyPreview(AppHost(owner.bind(site.config), app), owner)
    host.prepare(welcome(hostile_run(method={"name": "fednc"}, init={"kind": "nio"}), "run"))
    assert {code for code, _ in host.barring} == {"method", "examples"}
    assert {code for code, _ in host.coming} == {"gradients", "class-sums", "examples"}
    assert json.loads((site.records / "state.json").read_text())["data"] == {}


def test_the_help_explains_and_a_foreign_app_has_no_policy(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    text = runner.invoke(command, ["client", "--help"]).output
    for words in ("--policy", "--audit", "can say no", "examples/policies/strict.toml", "--dry-run"):
        assert words in text
    (tmp_path / "app").mkdir()
    arguments = ["client", "--server", "127.0.0.1:1", "--app", str(tmp_path / "app"), "--policy", str(STRICT)]
    refused = runner.invoke(command, arguments)
    assert refused.exit_code == ConfigError.exit_code
    assert "not those of --app" in refused.output


def test_the_page_lists_every_key_with_its_default_and_every_code() -> None:
    page = (STRICT.parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    text = page.partition("## A client that can say no\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:3] == "| `"]
    keys = {
        f"`{table}.{key}`": (
            f"`{json.dumps(value)}`",
            type(getattr(Policy(), table)).model_fields[key].description,
        )
        for table, values in Policy().model_dump(mode="json", exclude={"state"}).items()
        for key, value in values.items()
    }
    told = {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}
    assert told.pop("`state`")[0] == '`""`'
    assert told == keys
    assert {row[0]: row[1] for row in rows if len(row) == 2} == {f"`{k}`": v for k, v in SENTENCES.items()}
