"""Builds the status message of a run, for operators and for metrics.

Reads the federation on the event loop and changes nothing.
"""

from __future__ import annotations

import math
import time

from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.protos import operator_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node
from fednc.server.rounds.control import RunControl


def status_of(federation: Federation, control: RunControl) -> pb.RunStatus:
    """The round, all nodes, and the nodes the round waits for."""
    at_work = federation.at_work()
    bytes_up, bytes_down = federation.traffic()
    status = pb.RunStatus(
        run_id=federation.run_id,
        method=federation.run.method.name,
        round=control.round,
        rounds=federation.run.all_rounds,
        phase=_phase(federation, control),
        paused=control.paused,
        stopping=control.stopping,
        nodes=[_node(node, at_work.get(node.name, ""), federation, control) for node in federation.roster.nodes()],
        missing=sorted(at_work),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        elapsed_s=federation.events.elapsed_s,
        session=control.session,
        sessions=len(federation.run.sessions),
        waiting_session=control.waiting_session,
        classes=control.class_names,
        over=federation.over.reason if federation.over else "",
        dropped=list(federation.door.dropped),
        quarantined=list(federation.door.quarantined),
    )
    if control.last:
        status.completed, status.round_s, status.fold_s = control.last.round, control.last.seconds, control.fold_s
        _set_finite(status, "loss", control.last.loss)
        value = control.last.value_of(control.primary)
        if value is not None and math.isfinite(value):
            status.primary.CopyFrom(_metric(control.primary, value))
            if control.primary == ACCURACY:
                status.accuracy = value
        if control.last.spread:
            spread = {**control.last.spread, "clients": int(control.last.spread["clients"])}
            status.spread.CopyFrom(pb.Spread(**spread))  # type: ignore[arg-type]
    return status


def _metric(metric: MetricInfo, value: float) -> pb.MetricValue:
    return pb.MetricValue(
        name=metric.name, value=value, unit=metric.unit, lower_is_better=not metric.higher_is_better
    )


def _phase(federation: Federation, control: RunControl) -> pb.RunStatus.Phase:
    if federation.over:
        return pb.RunStatus.OVER
    if control.waiting:
        return pb.RunStatus.WAITING
    return pb.RunStatus.ROUND if control.round else pb.RunStatus.STARTING


def _node(node: Node, work: str, federation: Federation, control: RunControl) -> pb.NodeStatus:
    silent_s = time.monotonic() - node.last_seen
    status = pb.NodeStatus(
        name=node.name,
        state=node.state,
        problem=node.problem or control.drifting.get(node.name, ""),
        # an attending node was heard within `liveness_s`, if only through the connection's own pings
        last_seen_s=min(silent_s, federation.run.server.liveness_s) if node.is_here else silent_s,
        work=work,
        bytes_up=node.bytes_up,
        bytes_down=node.bytes_down,
        examples=node.examples,
        held_out=node.held_out,
        device=node.device,
        part=f"{node.part.index}/{node.part.of}" if node.part else "",
        holdings=node.holdings,
    )
    value = control.clients.get(node.name, {}).get(control.primary.name)
    if value is not None:
        status.primary.CopyFrom(_metric(control.primary, value))
    if node.progress:
        status.step, status.steps = node.progress.step, node.progress.steps
        _set_finite(status, "examples_per_s", node.progress.examples_per_s)
        status.device_memory_bytes = node.progress.device_memory_bytes
        _set_finite(status, "loss", node.progress.loss)
    return status


def _set_finite(status: pb.RunStatus | pb.NodeStatus, field: str, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        setattr(status, field, value)
