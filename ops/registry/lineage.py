"""Where a version comes from: run, clients, code, data, approvals, aliases. From its verified files and the store.

For `fednc models lineage` and `show`, for the served model's metadata, and for reports. JSON values only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fednc.common.errors import RefusedError
from fednc.common.security.signatures import Trust
from fednc.common.tasks.data_manifest import DataManifest
from fednc.ops.approvals.box import Verdict
from fednc.ops.registry.bundle import CLIENTS, FACTS, read_json
from fednc.ops.registry.data_versions import differences
from fednc.ops.registry.registry import APPROVAL, ModelRegistry
from fednc.ops.registry.versions import ModelVersion

_SHOWN = ("run", "run_digest", "method", "task", "readout", "frame_sha256", "weights_sha256", "classes")


def lineage_of(registry: ModelRegistry, reference: str) -> dict[str, Any]:
    """The lineage of a version. Raises TamperedError: a file or row is not what was registered."""
    found = registry.resolve(reference)
    facts, clients = read_json(found.folder, FACTS), read_json(found.folder, CLIENTS)
    summary = facts["summary"]
    return {
        "model": found.name,
        "version": found.version,
        "digest": found.digest,
        "aliases": list(found.aliases),
        **{key: facts[key] for key in _SHOWN},
        "ended": summary.get("ended", "finished"),
        "data_version": facts["data_version"],
        "stale": found.stale,
        "stale_why": found.stale_why,
        "clients": [{"name": name, "manifest": said} for name, said in sorted(clients["clients"].items())],
        "distributions": facts["distributions"],
        "events": facts["events"],
        "commands": facts["commands"],
        "approvals": approvals_of(found),
        "moves": {alias: [vars(move) for move in registry.history(found.name, alias)] for alias in found.aliases},
        "summary": summary,
    }


def approvals_of(found: ModelVersion, trust: Trust | None = None) -> list[dict[str, Any]]:
    """All verdicts on a version, the oldest first.

    Args:
        trust: whose signatures count; None: a signature only has to fit its own certificate.

    Returns:
        What was kept of each, and `valid`: it is about this version's digest, and its signature, if there is one,
        counts; `problem` says why not.
    """
    verdicts = []
    for key in sorted(key for key in found.tags if key.startswith(APPROVAL)):
        try:
            kept = json.loads(found.tags[key])
        except ValueError:
            kept = {}
        kept = kept if isinstance(kept, dict) else {}
        problem = _problem(kept, found.digest, trust)
        verdicts.append({**kept, "valid": not problem, "problem": problem})
    return verdicts


def _problem(kept: Mapping[str, Any], digest: str, trust: Trust | None) -> str:
    """Why a verdict does not count for the version of this digest; empty if it does."""
    if kept.get("digest") != digest:
        return "it is about another digest"
    if kept.get("signature") is None:
        return ""
    try:
        verdict = Verdict.from_json(kept)
        if trust is None:
            verdict.check_alone()
        else:
            verdict.check(trust)
    except (RefusedError, ValueError, TypeError) as e:
        return str(e)
    return ""


def data_changes(registry: ModelRegistry, old: str, new: str) -> list[str]:
    """What changed in the data from one version to another, one sentence each."""
    (classes, said), (new_classes, new_said) = (_data_of(registry.resolve(each)) for each in (old, new))
    return differences(classes, new_classes, said, new_said)


def _data_of(found: ModelVersion) -> tuple[list[str], Mapping[str, DataManifest | None]]:
    said = read_json(found.folder, CLIENTS)["clients"]
    manifests = {name: DataManifest.parse(json.dumps(one)) if one else None for name, one in said.items()}
    return read_json(found.folder, FACTS)["classes"], manifests
