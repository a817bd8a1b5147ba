"""The steps `register` and `deploy`: the run becomes a version, with the verdict; an alias moves to it.

Called through `steps.py`. A server that follows the alias swaps by itself; with `deploy.url` the step waits for
it.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from fednc.common.errors import AddressError, ConfigError
from fednc.common.model_export import read_manifest
from fednc.common.waiting import Deadline, wait_until
from fednc.ops.pipelines.gate import keep_verdict
from fednc.ops.pipelines.work import PipelineWork
from fednc.ops.registry.registration import register

_LOOK_AGAIN_S, _ANSWER_S = 0.25, 5.0


def register_inputs(work: PipelineWork) -> dict[str, Any]:
    """The run, the verdict and the place of the version."""
    table, verdict = work.file.register_, work.results.get("gate", {}).get("verdict", {})
    return {
        "run": work.federated.name,
        "weights_sha256": read_manifest(work.federated).weights_sha256,
        "approved": [verdict.get(key, "") for key in ("digest", "request", "at")],
        "store": work.file.store,
        "model": work.file.model,
        "alias": table.alias,
    }


def registered(work: PipelineWork) -> dict[str, Any]:
    """Add the run as a version, exactly as it was approved, and keep the verdict with it."""
    alias, approved = work.file.register_.alias, work.results.get("gate", {})
    work.journal.forget("register")  # the alias leaves the version that had it
    made = register(work.registry, work.federated, work.file.model, alias, digest=str(approved.get("digest", "")))
    reference = f"{made.name}/{made.version}"
    if approved:
        keep_verdict(work, reference, approved["verdict"])
    known = "" if made.is_new else ", as before"
    aliased = f", {made.name}@{alias}" if alias else ""
    return {
        "version": made.version,
        "digest": made.digest,
        "data_version": made.data_version,
        "outdated": list(made.outdated),
        "note": f"{reference}{known}{aliased}, digest {made.digest[:12]}",
    }


def is_registered(work: PipelineWork, found: dict[str, Any]) -> bool:
    """Whether the store still has the version."""
    try:
        return work.registry.current(f"{work.file.model}/{found['version']}") == (
            found["version"],
            found["digest"],
        )
    except (ConfigError, KeyError):
        return False


def no_deploy(work: PipelineWork) -> str:
    """Why no alias moves."""
    return "" if work.file.deploy else "the pipeline file has no [deploy]"


def deploy_inputs(work: PipelineWork) -> dict[str, Any]:
    """The version and the alias. Somebody who moves the alias back by hand is not overruled by the same
    version.
    """
    assert work.file.deploy is not None
    made = work.results["register"]
    return {"version": made["version"], "digest": made["digest"], "alias": work.file.deploy.alias}


def is_deployed(work: PipelineWork, found: dict[str, Any]) -> bool:
    """Whether the alias is still there, wherever somebody has moved it since."""
    del found
    assert work.file.deploy is not None
    return work.file.deploy.alias in work.registry.aliases(work.file.model)


def deployed(work: PipelineWork) -> dict[str, Any]:
    """Let the alias point to the version; wait until a server says that it serves it."""
    table, made, name = work.file.deploy, work.results["register"], work.file.model
    assert table is not None
    work.journal.forget("deploy")  # from here on an earlier deployment is no longer in force
    if work.results.get("gate"):
        keep_verdict(work, f"{name}/{made['version']}", work.results["gate"]["verdict"])
    before = work.registry.aliases(name).get(table.alias, 0)
    who = f"pipeline {work.file.name}/{work.current.number}"
    work.registry.set_alias(name, table.alias, int(made["version"]), who=who)
    seconds = _swapped(table.url, name, int(made["version"]), table.swap_s) if table.url else None
    was = f" (was {before})" if before not in (0, made["version"]) else ""
    served = f", served after {seconds:.1f} s" if seconds is not None else ""
    return {"before": before, "note": f"{name}@{table.alias} -> {made['version']}{was}{served}"}


def _swapped(url: str, name: str, version: int, patience_s: float) -> float:
    """Wait until the server serves the version; how long it took. Raises AddressError."""
    began, problem = time.monotonic(), ""

    def is_served() -> bool:
        nonlocal problem
        problem = _not_served(f"{url.rstrip('/')}/v2/models/{name}", version)
        return not problem

    if not wait_until(is_served, Deadline(patience_s), _LOOK_AGAIN_S):
        raise AddressError(
            f"deploy.url = {url}: version {version} of {name} is not served after {patience_s:g} s ({problem}). "
            "Look at the log of `fednc serve`; the alias has moved"
        )
    return time.monotonic() - began


def _not_served(url: str, version: int) -> str:
    """Why the model's own version is another one; empty if it is this one."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"deploy.url: {url!r:.80} is not http://HOST:PORT")
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:  # noqa: S310 - the scheme is checked above
            told = json.loads(answer.read(1 << 20))
    except (OSError, ValueError, urllib.error.URLError) as e:
        return f"{type(e).__name__}: {e}"
    now = [str(each) for each in told.get("versions", [])]
    return "" if now[:1] == [str(version)] else f"it serves {', '.join(now) or 'nothing'}"
