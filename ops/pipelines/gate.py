"""The step `gate`: a rule, then a person. The pipeline goes on with the digest that the person saw, or not at all.

Requests and verdicts are in the approval box of the pipeline; `fednc approve` and the console answer. Called through
`steps.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fednc.ops.approvals.box import ApprovalBox, Request, Verdict
from fednc.ops.pipelines.journal import StepState
from fednc.ops.pipelines.pipeline_file import GateTable
from fednc.ops.pipelines.work import GateRejectedError, GateWaitsError, Work
from fednc.ops.registry.registration import digest_before
from fednc.ops.registry.run_files import RunFiles

APPROVALS = "approvals"
_LOOK_AGAIN_S = 0.5


def no_gate(work: Work) -> str:
    """Why nobody is asked."""
    return "" if work.file.gate else "the pipeline file has no [gate]"


def inputs(work: Work) -> dict[str, Any]:
    """The candidate, and the rules of the gate."""
    gate = _gate(work)
    return {"candidate": candidate(work), "rules": gate.model_dump(include={"at_least", "at_most"}), "asked": True}


def candidate(work: Work) -> str:
    """The digest of the version: of the registered one, else of the one that registering would make now."""
    if work.results.get("register"):
        return str(work.results["register"]["digest"])
    return digest_before(work.registry, work.federated, work.file.model)


def subject(work: Work) -> str:
    """The name of this gate. A newer candidate at the same gate replaces an older one."""
    return f"pipeline {work.file.name}: model {work.file.model}"


def box_of(place: Path) -> ApprovalBox:
    """The approval box of a pipeline's folder."""
    return ApprovalBox(place / APPROVALS)


def is_approved(work: Work, found: dict[str, Any]) -> bool:
    """Whether the box still says so, and the verdict is signed if it must be."""
    verdict = box_of(work.journal.place).verdict(str(found.get("digest", "")), subject(work))
    wants = _gate(work).require_signature
    return verdict is not None and verdict.approved and (verdict.signature is not None or not wants)


def ask(work: Work) -> dict[str, Any]:
    """Ask, and wait for the verdict.

    Raises:
        GateRejectedError: a rule or a person rejects.
        GateWaitsError: nobody has answered in time, or the pipeline must not wait.
    """
    broken = list(_broken_rules(work))
    if broken:
        raise GateRejectedError(f"the gate's rules reject it: {'; '.join(broken)}")
    digest, box, gate = candidate(work), box_of(work.journal.place), _gate(work)
    box.request(Request(digest, subject(work), facts(work), signed=gate.require_signature))
    verdict = box.verdict(digest, subject(work)) or _wait(work, box, digest)
    if not verdict.approved:
        raise GateRejectedError(f"{verdict.who} rejected {digest[:12]}: {verdict.reason}")
    told = f" ({verdict.reason})" if verdict.reason else ""
    return {
        "digest": digest,
        "verdict": verdict.to_json(),
        "note": f"{digest[:12]} approved by {verdict.who}, {verdict.signed}{told}",
    }


def facts(work: Work) -> dict[str, Any]:
    """What the person is shown."""
    run, found = RunFiles.read(work.federated), work.results["evaluate"]
    return {
        "model": work.file.model,
        "run": str(work.federated),
        "why": work.current.cause.text,
        "metric": found["metric"]["name"],
        "value": found["value"],
        "metrics": {name: value for name, value in found["metrics"].items() if "/" not in name},
        "worst_client": found["worst_client"],
        "served": found["served"],
        "classes": list(run.model.class_names)[:100],
        "clients": sorted(run.clients)[:100],
        "code": [f"{one['name']} {one['version']}" for one in run.summary.get("distributions", [])],
    }


def _gate(work: Work) -> GateTable:
    assert work.file.gate is not None
    return work.file.gate


def _broken_rules(work: Work) -> Iterator[str]:
    gate, metrics = _gate(work), work.results["evaluate"]["metrics"]
    for name, bound in gate.at_least.items():
        if not metrics.get(name, float("-inf")) >= bound:
            yield f"{name} is {_told(metrics, name)}, at least {bound:g} is asked for"
    for name, bound in gate.at_most.items():
        if not metrics.get(name, float("inf")) <= bound:
            yield f"{name} is {_told(metrics, name)}, at most {bound:g} is allowed"


def _told(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.4g}" if name in metrics else f"not measured (there are {', '.join(sorted(metrics)[:20])})"


def _wait(work: Work, box: ApprovalBox, digest: str) -> Verdict:
    """The verdict, once there is one. Raises GateWaitsError, GateRejectedError."""
    gate, record = _gate(work), work.current.step("gate")
    record.state, record.note = StepState.ASKING, digest
    work.current.save()
    work.tell(f"gate: waits for a person. Look: fednc gates; answer: fednc approve {digest[:12]}")
    last = record.began_at + 3600 * gate.timeout_h if gate.timeout_h else float("inf")
    while work.waits and time.time() < last:
        verdict = box.verdict(digest, subject(work))
        if verdict is not None:
            return verdict
        time.sleep(_LOOK_AGAIN_S)
    if not work.waits:
        raise GateWaitsError(f"the gate waits for a verdict on {digest}; run the pipeline again once it is given")
    told = f"nobody has answered the gate within {gate.timeout_h:g} h"
    if gate.on_timeout == "reject":
        raise GateRejectedError(told)
    raise GateWaitsError(f"{told}; run the pipeline again to wait on")
