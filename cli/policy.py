"""`fednc client --policy`: reads the owner's policy, applies it to the client's work, shows what it refuses.

Called by `client.py` once torch is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fednc.cli.output import say, show_table, write_json
from fednc.client.app.dry_run import DryRunResult, dry_run
from fednc.client.link.link import Host, LinkConfig
from fednc.client.policy.audit import Audit
from fednc.client.policy.guard import Guard
from fednc.client.policy.ledger import Ledger
from fednc.client.policy.owner import Owner
from fednc.client.policy.preview import PolicyPreview
from fednc.client.policy.rules import SENTENCES, read_policy
from fednc.common.errors import ConfigError
from fednc.common.process.interrupt import run_until_interrupted


def read_owner(policy: Path | None, data: str, val_share: float) -> Owner | None:
    """The policy with its records; None without one. Raises ConfigError."""
    if policy is None:
        return None
    found, folder = read_policy(policy)
    return Owner(found, Ledger(folder), data, val_share)


def refuse_for_foreign(policy: Path | None) -> None:
    """Raises ConfigError if there is a policy: it cannot judge a foreign app's messages."""
    if policy is not None:
        raise ConfigError(
            f"--policy {policy}: a policy can only judge fednc's own messages, not those of --app. Leave one of "
            "them out; --audit works with both."
        )


def guarded(host: Host, config: LinkConfig, owner: Owner | None, audit: Path | None) -> tuple[Host, LinkConfig]:
    """The host and link behind policy and audit log; unchanged if there is neither. Raises ConfigError."""
    if owner is None and audit is None:
        return host, config
    place = audit or (owner.ledger.folder / "audit.jsonl" if owner else None)
    guard = Guard(host, Audit(place) if place else None, owner)
    return guard, replace(config, before_download=guard.before_download)


def show_dry_run(config: LinkConfig, host: Host, owner: Owner | None, target: str, *, stop_s: float) -> None:
    """Make a dry run and show its result, and with a policy what it would refuse."""
    preview = PolicyPreview(host, owner) if owner else None
    try:
        result = run_until_interrupted(dry_run(config, preview or host), stop_s=stop_s)
    except Exception:
        if preview:
            _show_objections(preview)
        raise
    _show_result(result)
    if preview:
        _show_objections(preview)
    if target:
        write_json(target, result.to_json() | (_as_json(preview) if preview else {}))


def _show_objections(preview: PolicyPreview) -> None:
    say(f"run digest: {preview.digest}")
    rows = [
        (effect, code, SENTENCES[code], detail)
        for effect, found in (("no part in the run", preview.barring), ("no such reply", preview.coming))
        for code, detail in found
    ]
    if rows:
        show_table("the policy refuses", ("effect", "code", "the server is told", "here"), rows)
    else:
        say("the policy refuses nothing in this run")


def _as_json(preview: PolicyPreview) -> dict[str, object]:
    found = {"barring": preview.barring, "coming": preview.coming}
    return {"digest": preview.digest, **{key: [one._asdict() for one in each] for key, each in found.items()}}


def _show_result(result: DryRunResult) -> None:
    show_table(
        f"dry run for {result.run_id}",
        ("device", "part", "examples", "held out", "batch", "s per batch", "examples/s", "peak MiB"),
        [
            (
                result.device,
                result.part or "own",
                result.examples,
                result.held_out,
                result.batch,
                result.batch_s,
                round(result.examples_per_s),
                result.memory_bytes >> 20,
            )
        ],
    )
