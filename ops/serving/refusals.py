"""Why a request is refused, with the status that each protocol has for it.

Raised wherever a request is read, checked or computed; `rest.py` and `grpc_service.py` turn it into an answer.
"""

from __future__ import annotations

from enum import Enum

import grpc

from fednc.common.peer_text import one_line

MOST_TEXT = 500  # characters of a reason, which may quote the request


class Problem(Enum):
    """A kind of refusal: its HTTP status and its gRPC status."""

    INVALID = 400, grpc.StatusCode.INVALID_ARGUMENT
    UNAUTHENTICATED = 401, grpc.StatusCode.UNAUTHENTICATED
    FORBIDDEN = 403, grpc.StatusCode.PERMISSION_DENIED
    NOT_FOUND = 404, grpc.StatusCode.NOT_FOUND
    WRONG_METHOD = 405, grpc.StatusCode.UNIMPLEMENTED
    TOO_SLOW = 408, grpc.StatusCode.DEADLINE_EXCEEDED
    TOO_LARGE = 413, grpc.StatusCode.RESOURCE_EXHAUSTED
    UNSUPPORTED = 415, grpc.StatusCode.UNIMPLEMENTED
    INTERNAL = 500, grpc.StatusCode.INTERNAL
    BUSY = 503, grpc.StatusCode.UNAVAILABLE

    @property
    def http_status(self) -> int:
        """The HTTP status."""
        return self.value[0]

    @property
    def grpc_status(self) -> grpc.StatusCode:
        """The gRPC status."""
        return self.value[1]


class RequestRefusal(Exception):
    """This request gets no answer but the reason: one sentence that may be shown to its caller."""

    def __init__(self, reason: object, problem: Problem = Problem.INVALID) -> None:
        self.reason, self.problem = one_line(reason, MOST_TEXT), problem
        super().__init__(self.reason)
