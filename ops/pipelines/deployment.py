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
from fednc.ops.pipelines.work import PipelineWork
from fednc.ops.registry.registration import register
from fednc.ops.registry.registry import APPROVAL

_LOOK_AGAIN_S, _ANSWER_S = 0.25, 5.0


def register_inputs(work: PipelineWork) -> dict[str, Any]:
    """The run, the verdict and the place of the version."""
    table = work.file.register_
    return {
        "run": work.federated.name,
        "weights_sha256": read_manifest(work.federated).weights_sha256,
        "approved": work.results.get("gate", {}).get("digest", ""),
        "store": work.file.store,
        "model": work.file.model,
        "alias": table.alias,
    }


def registered(work: PipelineWork) -> dict[str, Any]:
    """Add the run as a version, exactly as it was approved, and keep the verdict with it."""
    alias, approved = work.file.register_.alias, work.results.get("gate", {})
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


def keep_verdict(work: PipelineWork, reference: str, verdict: dict[str, Any]) -> None:
    """Keep a verdict with its version, once: a step that was killed does this again."""
    tags = work.registry.resolve(reference).tags
    kept = [json.loads(value) for key, value in tags.items() if key.startswith(APPROVAL)]
    pipeline = {"pipeline": work.file.name, "number": work.current.number}
    if not any(one.get("request") == verdict["request"] and one.get("at") == verdict["at"] for one in kept):
        work.registry.add_approval(reference, {**verdict, **pipeline})


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


def deployed(work: PipelineWork) -> dict[str, Any]:
    """Let the alias point to the version; wait until a server says that it serves it."""
    table, made, name = work.file.deploy, work.results["register"], work.file.model
    assert table is not None
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
    began = time.monotonic()
    while True:
        problem = _not_served(f"{url.rstrip('/')}/v2/models/{name}", version)
        spent_s = time.monotonic() - began
        if not problem:
            return spent_s
        if spent_s > patience_s:
            raise AddressError(
                f"deploy.url = {url}: version {version} of {name} is not served after {patience_s:g} s "
                f"({problem}). Look at the log of `fednc serve`; the alias has moved"
            )
        time.sleep(_LOOK_AGAIN_S)


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
