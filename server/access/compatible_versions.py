"""Whether a client that attends is one that this run can work with: versions of package, task and method.

Asked by the servicer before a client is admitted. The wire's own version comes first and is checked there.
"""

from __future__ import annotations

from fednc.common import versions
from fednc.common.config.run import RunConfig
from fednc.protos import federation_pb2 as pb


def version_problem(request: pb.AttendRequest, run: RunConfig, app: str) -> str:
    """Why it is refused, with both versions; empty: it fits. `app` is a foreign one that both sides run."""
    who = f"client {request.name!r}"
    problem = versions.package_differs(versions.package(), request.software, who)
    if problem or app:
        return problem  # a foreign app brings its own tasks and methods
    _, task, method = versions.of_run(run)
    return versions.entry_differs("task", task, request.tasks, who, is_server=True) or versions.entry_differs(
        "method", method, request.methods, who, is_server=True
    )
