"""Checks whether an attending client has the versions of package, task and method that the run needs.

Called by the servicer before it admits a client, after it has checked the version of the wire protocol.
"""

from __future__ import annotations

from fednc.common import versions
from fednc.common.config.run import RunConfig
from fednc.protos import federation_pb2 as pb


def version_problem(request: pb.AttendRequest, run: RunConfig, app: str) -> str:
    """Why the client is refused, with both versions; empty if it fits. `app` is the run's foreign app, if any."""
    who = f"client {request.name!r}"
    problem = versions.package_differs(versions.package(), request.software, who)
    if problem or app:
        return problem  # a foreign app uses none of fednc's tasks and methods
    _, task, method = versions.of_run(run)
    return versions.entry_differs("task", task, request.tasks, who, is_server=True) or versions.entry_differs(
        "method", method, request.methods, who, is_server=True
    )
