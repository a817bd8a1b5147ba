"""`fednc client --policy`: reads the owner's policy, puts it before the client's work, shows what it refuses.

Called by `client.py` once torch is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fednc.cli.output import say, show_table, write_json
from fednc.client.app.dry_run import Rehearsal, rehearse
from fednc.client.link.link import Host, LinkConfig
from fednc.client.policy.audit import Audit
from fednc.client.policy.foresight import Foresight
from fednc.client.policy.guard import Guard
from fednc.client.policy.ledger import Ledger
from fednc.client.policy.owner import Owner
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
    """Raises ConfigError where a policy is given for an app whose messages nobody here understands."""
    if policy is not None:
        raise ConfigError(
            f"--policy {policy}: a policy judges fednc's own messages and cannot judge those of --app. Leave out "
            "one of them; --audit works with both."
        )


def guarded(host: Host, config: LinkConfig, owner: Owner | None, audit: Path | None) -> tuple[Host, LinkConfig]:
    """The host and link with policy and audit log before them; as they are without either. Raises ConfigError."""
    if owner is None and audit is None:
        return host, config
    place = audit or (owner.ledger.folder / "audit.jsonl" if owner else None)
    guard = Guard(host, Audit(place) if place else None, owner)
    return guard, replace(config, before_download=guard.before_download)


def show_dry_run(config: LinkConfig, host: Host, owner: Owner | None, target: str, *, stop_s: float) -> None:
    """Rehearse and show the result, and with a policy what of the run it refuses."""
    foresight = Foresight(host, owner) if owner else None
    try:
        rehearsal = run_until_interrupted(rehearse(config, foresight or host), stop_s=stop_s)
    except Exception:
        if foresight:
            _show_objections(foresight)
        raise
    _show_rehearsal(rehearsal)
    if foresight:
        _show_objections(foresight)
    if target:
        write_json(target, rehearsal.to_json() | (_as_json(foresight) if foresight else {}))


def _show_objections(foresight: Foresight) -> None:
    say(f"run digest: {foresight.digest}")
    rows = [
        (effect, code, SENTENCES[code], detail)
        for effect, found in (("no part in the run", foresight.barring), ("no such reply", foresight.coming))
        for code, detail in found
    ]
    if rows:
        show_table("the policy refuses", ("effect", "code", "the server is told", "here"), rows)
    else:
        say("the policy refuses nothing of this run")


def _as_json(foresight: Foresight) -> dict[str, object]:
    found = {"barring": foresight.barring, "coming": foresight.coming}
    return {"digest": foresight.digest, **{key: [one._asdict() for one in each] for key, each in found.items()}}


def _show_rehearsal(rehearsal: Rehearsal) -> None:
    show_table(
        f"dry run for {rehearsal.run_id}",
        ("device", "part", "examples", "held out", "batch", "s per batch", "examples/s", "peak MiB"),
        [
            (
                rehearsal.device,
                rehearsal.part or "own",
                rehearsal.examples,
                rehearsal.held_out,
                rehearsal.batch,
                rehearsal.batch_s,
                round(rehearsal.examples_per_s),
                rehearsal.memory_bytes >> 20,
            )
        ],
    )
