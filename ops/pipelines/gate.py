"""The step `gate`: a rule, then a person. The pipeline goes on with the digest that the person saw, or not at all.

Requests and verdicts are in an approval box; `fednc approve` and the console answer. Called through
`steps.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fednc.common.security.signatures import Trust
from fednc.common.waiting import Deadline, wait_until
from fednc.ops.approvals.box import ApprovalBox, Request, Verdict
from fednc.ops.pipelines.check import plugins_of
from fednc.ops.pipelines.journal import StepRecord, StepState
from fednc.ops.pipelines.pipeline_file import GateTable, PipelineFile
from fednc.ops.pipelines.work import GateRejectedError, GateWaitsError, PipelineWork
from fednc.ops.registry.registration import digest_before
from fednc.ops.registry.registry import APPROVAL
from fednc.ops.registry.run_files import RunFiles

_DIGITS = 16  # of a digest, as `fednc approve` takes it
_LOOK_AGAIN_S = 0.5


def no_gate(work: PipelineWork) -> str:
    """Why nobody is asked."""
    return "" if work.file.gate else "the pipeline file has no [gate]"


def inputs(work: PipelineWork) -> dict[str, Any]:
    """The candidate, and the rules of the gate."""
    gate = _gate(work)
    return {
        "candidate": candidate(work),
        "rules": gate.model_dump(include={"at_least", "at_most"}),
        "trust": gate.trust,
    }


def candidate(work: PipelineWork) -> str:
    """The digest of the version: of the registered one, else of the one that registering would make now."""
    if work.results.get("register"):
        return str(work.results["register"]["digest"])
    return digest_before(work.registry, work.federated, work.file.model)


def subject(file: PipelineFile) -> str:
    """The name of the gate. A newer candidate at the same gate replaces an older one."""
    return f"pipeline {file.name}: model {file.model}"


def box_of(file: PipelineFile) -> ApprovalBox:
    """Where the gate asks, and finds the verdict."""
    trust = file.gate.trust if file.gate else ""
    return ApprovalBox(file.approvals, Trust.from_folder(Path(trust)) if trust else None)


def verdict_on(file: PipelineFile, digest: str) -> Verdict | None:
    """The verdict on a candidate, if one that counts has been given. Raises RefusedError: its signature is not
    valid.

    One that was given before the gate wanted signatures does not count without.
    """
    verdict = box_of(file).verdict(digest, subject(file))
    wants = file.gate is not None and file.gate.require_signature
    return None if verdict is not None and wants and verdict.signature is None else verdict


def is_approved(work: PipelineWork, found: dict[str, Any]) -> bool:
    """Whether the box still says so, by the same verdict: the one that opens the gate is the one that is kept."""
    verdict = verdict_on(work.file, str(found.get("digest", "")))
    return verdict is not None and verdict.approved and verdict.to_json() == found.get("verdict")


def ask(work: PipelineWork) -> dict[str, Any]:
    """Ask, and wait for the verdict.

    Raises:
        GateRejectedError: a rule or a person rejects.
        GateWaitsError: nobody has answered in time, or the pipeline must not wait.
    """
    broken = list(_broken_rules(work))
    if broken:
        raise GateRejectedError(f"the gate's rules reject it: {'; '.join(broken)}")
    digest = candidate(work)
    asked = Request(digest, subject(work.file), facts(work), signed=_gate(work).require_signature)
    box_of(work.file).request(asked)
    verdict = verdict_on(work.file, digest) or _wait(work, digest)
    if not verdict.approved:
        raise GateRejectedError(f"{verdict.who} rejected {digest[:_DIGITS]}: {verdict.reason}")
    if made := work.results.get("register"):
        keep_verdict(work, f"{work.file.model}/{made['version']}", verdict.to_json())
    told = f" ({verdict.reason})" if verdict.reason else ""
    return {
        "digest": digest,
        "verdict": verdict.to_json(),
        "note": f"{digest[:_DIGITS]} approved by {verdict.who}, {verdict.signed}{told}",
    }


def keep_verdict(work: PipelineWork, reference: str, verdict: dict[str, Any]) -> None:
    """Keep a verdict with its version, once: a step that was killed does this again."""
    tags = work.registry.resolve(reference).tags
    kept = [json.loads(value) for key, value in tags.items() if key.startswith(APPROVAL)]
    pipeline = {"pipeline": work.file.name, "number": work.current.number}
    if not any(one.get("request") == verdict["request"] and one.get("at") == verdict["at"] for one in kept):
        work.registry.add_approval(reference, {**verdict, **pipeline})


def facts(work: PipelineWork) -> dict[str, Any]:
    """What the person is shown."""
    run, found = RunFiles.read(work.federated), work.results["evaluate"]
    return {
        "model": work.file.model,
        "run": str(work.federated),
        "why": work.current.why,
        "metric": found["metric"]["name"],
        "value": found["value"],
        "metrics": {name: value for name, value in found["metrics"].items() if "/" not in name},
        "worst_client": found["worst_client"],
        "served": found["served"],
        "classes": list(run.model.class_names)[:100],
        "clients": sorted(run.clients)[:100],
        "code": [f"{one['name']} {one['version']}" for one in run.summary.get("distributions", [])],
        "plug-ins": [
            f"{one['name']} of {one['distribution']} {one['version']} ({one['licence']}): {one['outcome']}"
            for one in plugins_of(work)
        ],
    }


def _gate(work: PipelineWork) -> GateTable:
    assert work.file.gate is not None
    return work.file.gate


def _broken_rules(work: PipelineWork) -> Iterator[str]:
    gate, metrics = _gate(work), work.results["evaluate"]["metrics"]
    for name, bound in gate.at_least.items():
        if not metrics.get(name, float("-inf")) >= bound:
            yield f"{name} is {_told(metrics, name)}, at least {bound:g} is asked for"
    for name, bound in gate.at_most.items():
        if not metrics.get(name, float("inf")) <= bound:
            yield f"{name} is {_told(metrics, name)}, at most {bound:g} is allowed"


def _told(metrics: dict[str, float], name: str) -> str:
    return (
        f"{metrics[name]:.4g}"
        if name in metrics
        else f"not measured (there are {', '.join(sorted(metrics)[:20])})"
    )


def _wait(work: PipelineWork, digest: str) -> Verdict:
    """The verdict, once there is one. Raises GateWaitsError, GateRejectedError."""
    gate, record = _gate(work), work.current.step("gate")
    record.state, record.note = StepState.ASKING, digest
    work.current.save()
    place = "" if work.file.approvals == Path("approvals") else f" --folder {work.file.approvals}"
    work.tell(
        f"gate: waits for a person. Look: fednc gates{place}; answer: fednc approve {digest[:_DIGITS]}{place}"
    )
    left_s = waits_still_s(gate, record)
    deadline = Deadline(left_s if work.waits else 0.0)
    verdict = wait_until(lambda: verdict_on(work.file, digest), deadline, _LOOK_AGAIN_S)
    if verdict is not None:
        return verdict
    if left_s and not work.waits:
        raise GateWaitsError(f"the gate waits for a verdict on {digest}; run the pipeline again once it is given")
    told = timeout_text(gate)
    if gate.on_timeout == "reject":
        raise GateRejectedError(told)
    record.began_at = 0.0  # the next time begins anew
    work.current.save()
    raise GateWaitsError(f"{told}; run the pipeline again to wait on")


def waits_still_s(gate: GateTable, record: StepRecord) -> float:
    """Seconds that the gate still waits for a person, counted from when it first asked about this candidate."""
    return max(0.0, record.began_at + 3600 * gate.timeout_h - time.time()) if gate.timeout_h else math.inf


def timeout_text(gate: GateTable) -> str:
    """What has happened when no time is left."""
    return f"nobody has answered the gate within {gate.timeout_h:g} h"
