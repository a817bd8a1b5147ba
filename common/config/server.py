"""`[server]` of the run file: process, security and limits. `run.py` combines it with the other tables.

Add new keys here, with the description for `docs/config.md`. No key here may affect the result of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from fednc.common.address import parse_address, parse_host
from fednc.common.config.tables import Count, Positive, Section
from fednc.common.errors import ConfigError
from fednc.common.plugins import check_name


class ServerSection(Section):
    """The server process."""

    listen: str = Field("127.0.0.1:8440", description="HOST:PORT to listen on; port 0 picks a free port")
    runs: str = Field("runs", description="folder for results, one subfolder per run")
    keep_checkpoints: Annotated[int, Field(ge=0)] = Field(
        2,
        description="checkpoints to keep; one is written after every round; 0: none, so the run cannot be resumed",
    )
    auth: Literal["auto", "mtls", "token", "none"] = Field(
        "auto",
        description="how clients prove their identity: by certificate, by token, or not at all (plaintext). "
        "`auto`: `mtls` if certificates are given, else `none`, which listens on loopback only",
    )
    certs: str = Field("", description="folder with all of the files below, as written by `fednc certs server`")
    ca: str = Field("", description="certificate of the authority that issues the nodes' certificates")
    cert: str = Field("", description="certificate of the server")
    key: str = Field("", description="private key of the server")
    tokens: str = Field("", description="list of hashed tokens; changes take effect with the next call")
    revoked: str = Field("", description="list of revoked serials; changes take effect with the next call")
    insecure: bool = Field(False, description="allow plaintext and unverified names beyond loopback")
    reflection: bool = Field(False, description="enable gRPC reflection on an encrypted port too, for operators")
    health_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="loopback port of the gRPC health service for probes; 0: off"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="port of the Prometheus metrics, readable by anyone who can reach it; 0: off"
    )
    metrics_host: str = Field("127.0.0.1", description="address to serve the metrics on")
    ingest_mib: Count = Field(512, description="limit in MiB on memory and upload slots for all clients together")
    events_mib: Count = Field(
        64, description="size in MiB at which `events.jsonl` is renamed and a new one started"
    )
    events_kept: Annotated[int, Field(ge=0)] = Field(
        3,
        description="earlier event files to keep, as `events.jsonl.1` and so on; older ones are deleted",
    )
    upload_floor_kib_s: Annotated[float, Field(ge=0)] = Field(
        4.0,
        description="an upload slower than this many KiB/s, measured over six times `liveness_s`, gives up its "
        "slot to one that waits, and continues later from where it was; 0: no limit",
    )
    quarantine_after: Annotated[int, Field(ge=0)] = Field(
        3,
        description="refused messages and replies after which a client is banned until an operator readmits it; "
        "0: never",
    )
    trackers: tuple[Annotated[str, AfterValidator(check_name)], ...] = Field(
        (),
        description="names of trackers to tell about each round; `fednc plugins` lists the installed ones. A "
        "tracker that fails is switched off and does not harm the run",
    )
    stop_s: Positive = Field(
        10.0, description="seconds after SIGTERM or Ctrl-C at which the server exits even if a thread is stuck"
    )
    liveness_s: Positive = Field(5.0, description="seconds of silence after which an idle client counts as lost")

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return _or_value_error(lambda: str(parse_address(value, "", may_choose_port=True)))

    @field_validator("metrics_host")
    @classmethod
    def _is_host(cls, value: str) -> str:
        return _or_value_error(lambda: parse_host(value, ""))


def _or_value_error(parse: Callable[[], str]) -> str:
    """Turn ConfigError into ValueError, which pydantic reports with the key."""
    try:
        return parse()
    except ConfigError as e:
        raise ValueError(str(e)) from e
