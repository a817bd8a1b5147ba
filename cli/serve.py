"""`fednc serve`: models as a service, over REST and gRPC."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednc.cli.options import Device
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.common.address import Address
    from fednc.ops.serving.models import WantedModel
    from fednc.ops.serving.server import ServedAddresses
    from fednc.ops.serving.sources import ModelSource

DEFAULT_ALIAS = "champion"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]MODEL[@ALIAS]|runs/<id>",
        help="Models of the registry, or folders of finished runs; NAME is the name in the address.",
    ),
]
Canaries = Annotated[
    list[str] | None,
    typer.Option(
        "--canary",
        metavar="MODEL@ALIAS=SHARE",
        help="Answer this share of a model's requests from another version, e.g. digits@challenger=0.1.",
    ),
]
Store = Annotated[
    str,
    typer.Option(
        metavar="URI",
        help="Registry of `fednc models`: a folder, or an MLflow server. Default: FEDNC_STORE, else `models`.",
    ),
]
Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address for REST.")]
Grpc = Annotated[str, typer.Option(metavar="HOST:PORT|off", help="Address for gRPC.")]
Probe = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Also answer health and metrics here, without TLS or credential.")
]
Certs = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `fednc certs server`.")]
Auth = Annotated[str, typer.Option(help="mtls, token or none; auto: mtls with --certs.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Plaintext for everybody, beyond this machine too: for closed networks.")
]
MaxBatch = Annotated[int, typer.Option(min=1, help="Most examples computed at once.")]
MaxDelay = Annotated[float, typer.Option(min=0.0, help="Milliseconds that an idle model waits for more requests.")]
Queue = Annotated[
    int, typer.Option(min=1, help="Examples that may wait per model; beyond that, requests are refused.")
]
MaxBody = Annotated[int, typer.Option(min=1, max=1024, help="Most MiB in one request.")]
Poll = Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at each alias.")]
Drain = Annotated[float, typer.Option(min=0.0, help="Seconds for open requests when the server ends.")]
RefuseStale = Annotated[
    bool, typer.Option("--refuse-stale", help="Never answer from a model whose data is out of date.")
]
Threads = Annotated[int, typer.Option(min=0, help="Threads that PyTorch uses on the CPU; 0: its own choice.")]


def command(
    models: Models,
    canary: Canaries = None,
    store: Store = "",
    listen: Listen = "127.0.0.1:8450",
    grpc: Grpc = "127.0.0.1:8451",
    probe: Probe = "",
    certs: Certs = None,
    auth: Auth = "auto",
    insecure: Insecure = False,
    device: Device = "auto",
    threads: Threads = 0,
    max_batch: MaxBatch = 64,
    max_delay_ms: MaxDelay = 0.0,
    queue: Queue = 2048,
    max_body_mib: MaxBody = 16,
    poll_s: Poll = 0.5,
    drain_s: Drain = 30.0,
    refuse_stale: RefuseStale = False,
) -> None:
    """Serve models over the Open Inference Protocol v2: REST and gRPC.

    Without @ALIAS a model of the registry is served at its alias `champion`. When an alias moves, the new version
    is loaded and answers within two seconds; no request is lost. If it cannot be loaded, the old one stays.
    SIGTERM and Ctrl-C finish open requests first. docs/serve.md shows how to ask.
    """
    import torch

    from fednc.common.device import pick_device
    from fednc.common.process.collector import spare_what_is_loaded
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.common.process.log_format import log_to_stderr
    from fednc.ops.serving.access import door_of
    from fednc.ops.serving.batching import BatchLimits
    from fednc.ops.serving.models import ServingRules
    from fednc.ops.serving.server import ServeSettings, serve
    from fednc.ops.serving.sources import AnySource

    log_to_stderr()
    wanted = _wanted(models, canary or [])
    http = _address(listen, "--listen")
    over_grpc = None if grpc == "off" else _address(grpc, "--grpc")
    given = [each for each in (http, over_grpc) if each is not None]
    if threads:
        torch.set_num_threads(threads)
    settings = ServeSettings(
        models=wanted,
        rules=ServingRules(
            device=pick_device(device),
            limits=BatchLimits(max_batch, max_delay_ms / 1000, queue),
            poll_s=poll_s,
            refuse_stale=refuse_stale,
        ),
        door=door_of(auth, certs, given, insecure=insecure),
        http=http,
        grpc=over_grpc,
        probe=_address(probe, "--probe") if probe else None,
        body_mib=max_body_mib,
        drain_s=drain_s,
    )
    source = AnySource(_registry(store, wanted))
    spare_what_is_loaded()
    try:
        run_until_interrupted(
            serve(settings, source, _say_where),
            stop_s=drain_s + 5,
            loop_factory=_fast_loop(),
        )
    except KeyboardInterrupt:
        return  # the usual end of a service


def _say_where(found: ServedAddresses) -> None:
    from fednc.cli.output import say

    places = {"http": found.http, "grpc": found.grpc, "probe": found.probe}
    say("listening: " + ", ".join(f"{name} {place}" for name, place in places.items() if place is not None))


def _address(text: str, option: str) -> Address:
    from fednc.common.address import parse_address

    return parse_address(text, option, may_choose_port=True)


def _wanted(models: list[str], canaries: list[str]) -> tuple[WantedModel, ...]:
    """The models to serve, with their canaries. Raises ConfigError."""
    from fednc.ops.serving.models import WantedModel

    shares = dict(_canary(each) for each in canaries)
    found = []
    for text in models:
        name, reference = _named(text)
        canary, share = shares.pop(name, ("", 0.0))
        found.append(WantedModel(name, reference, canary, share))
    if shares:
        raise ConfigError(
            f"--canary {next(iter(shares))}: no such model is served; serve it, or write --canary "
            "NAME=MODEL@ALIAS=SHARE"
        )
    return tuple(found)


def _named(text: str) -> tuple[str, str]:
    """(name, reference) of `[NAME=]REFERENCE`."""
    from fednc.ops.serving.sources import is_folder

    given, equals, reference = text.partition("=")
    if not equals:
        reference = text
    folder = is_folder(reference)
    name = given if equals else Path(reference).resolve().name if folder else re.split("[@/]", reference)[0]
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{text}: {name!r} cannot be a name in an address; write NAME={reference} with letters, digits, '.', "
            "'_' and '-' in NAME"
        )
    return name, reference if folder or "@" in reference or "/" in reference else f"{reference}@{DEFAULT_ALIAS}"


def _canary(text: str) -> tuple[str, tuple[str, float]]:
    """(name of the served model, (reference, share)) of `[NAME=]MODEL@ALIAS=SHARE`."""
    front, _, share = text.rpartition("=")
    try:
        found = float(share)
    except ValueError:
        found = -1.0
    if not front or not 0 < found <= 1:
        raise ConfigError(f"--canary {text}: expected MODEL@ALIAS=SHARE with a share above 0 and up to 1")
    name, reference = _named(front)
    return name, (reference, found)


def _registry(store: str, wanted: tuple[WantedModel, ...]) -> ModelSource | None:
    """The registry, if a model comes from there."""
    from fednc.ops.serving.sources import RegistrySource, is_folder, open_registry

    references = [each for model in wanted for each in (model.reference, model.canary) if each]
    if all(map(is_folder, references)):
        return None
    return RegistrySource(open_registry(store or os.environ.get("FEDNC_STORE", "")))


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
