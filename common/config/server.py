"""`[server]` of the run file: process, security and budgets. `run.py` puts it among the other tables.

A new key goes here, with the description that `docs/config.md` shows. Nothing here bears on a run's result.
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

    listen: str = Field("127.0.0.1:8440", description="HOST:PORT to listen on; port 0 takes a free one")
    runs: str = Field("runs", description="folder for results, one subfolder per run")
    keep_checkpoints: Annotated[int, Field(ge=0)] = Field(
        2, description="checkpoints to keep, one written after every round; 0: none, the run cannot be continued"
    )
    auth: Literal["auto", "mtls", "token", "none"] = Field(
        "auto",
        description="how clients show who they are: by certificate, by token, or not at all (plaintext); `auto`: "
        "`mtls` where certificates are given, else `none`, which listens on loopback only",
    )
    certs: str = Field("", description="folder with all of the files below, as `fednc certs server` makes it")
    ca: str = Field("", description="certificate of the authority that nodes' certificates come from")
    cert: str = Field("", description="certificate of the server")
    key: str = Field("", description="private key of the server")
    tokens: str = Field("", description="list of hashed tokens; changes count from the next call on")
    revoked: str = Field("", description="list of revoked serials; changes count from the next call on")
    insecure: bool = Field(False, description="allow plaintext and unproven names beyond loopback")
    reflection: bool = Field(False, description="gRPC reflection on an encrypted port too, for operators")
    health_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="loopback port of the gRPC health service for probes; 0: off"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="port of the Prometheus metrics; anybody who reaches it can read them; 0: off"
    )
    metrics_host: str = Field("127.0.0.1", description="address that the metrics are served on")
    ingest_mib: Count = Field(512, description="memory and upload slots that all clients together may occupy")
    events_mib: Count = Field(64, description="size at which `events.jsonl` is put aside and a new one begun")
    events_kept: Annotated[int, Field(ge=0)] = Field(
        3,
        description="files of earlier events that are kept, as `events.jsonl.1` and so on; older ones are deleted",
    )
    upload_floor_kib_s: Annotated[float, Field(ge=0)] = Field(
        4.0,
        description="KiB per second below which an upload gives its place to one that waits, measured over six "
        "times `liveness_s`; it goes on later from where it was; 0: no such floor",
    )
    quarantine_after: Annotated[int, Field(ge=0)] = Field(
        3,
        description="refused messages and replies after which a client is shut out until an operator readmits it; "
        "0: never",
    )
    trackers: tuple[Annotated[str, AfterValidator(check_name)], ...] = Field(
        (),
        description="trackers that hear of each round, by name; `fednc plugins` lists what is installed. One that "
        "fails is left out and harms no run",
    )
    stop_s: Positive = Field(
        10.0, description="seconds after SIGTERM or Ctrl-C at which the server ends even if a thread is stuck"
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
    """What pydantic reports with the key's place."""
    try:
        return parse()
    except ConfigError as e:
        raise ValueError(str(e)) from e
