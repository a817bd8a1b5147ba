"""`fednc bench link|fold|scale|trainer|search|serve`: the measurements behind the figures in the documentation.

Parses options, shows progress on stderr, writes one JSON object.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fednc.cli.options import Device, Json
from fednc.cli.output import say, show_table, write_json
from fednc.common.errors import ConfigError

T = TypeVar("T")
app = typer.Typer(add_completion=False, no_args_is_help=True)

Params = Annotated[str, typer.Option(help="Number of parameters of the model, or a list: 1e5,11e6.")]
Clients = Annotated[str, typer.Option(help="Number of clients, or a list: 2,8,64.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds to measure; the result is their median.")]
Warmup = Annotated[int, typer.Option(min=1, help="Rounds before the measured ones.")]
Codec = Annotated[str, typer.Option(help="Codecs of the update, as a list: fp32,bf16,int8.")]
Tls = Annotated[str, typer.Option(help="off or mtls (certificates on both sides), or a list.")]
Against = Annotated[
    str, typer.Option(help="Also measure raw (bare gRPC), flower (stock flwr), or both as a list.")
]
Processes = Annotated[
    int, typer.Option(min=0, help="Client processes; 0: one per client, but not more than cores.")
]
FoldParams = Annotated[
    int, typer.Option(min=0, help="Size of the array in values; 0: four times the last-level cache.")
]
Many = Annotated[int, typer.Option(min=1, help="Number of clients.")]
ScaleParams = Annotated[int, typer.Option("--params", min=1, help="Number of parameters of the model.")]
ScaleRounds = Annotated[
    int, typer.Option("--rounds", min=1, help="Rounds to measure, after one round of warm-up.")
]
Model = Annotated[str, typer.Option(help="cnn, plain, resnet18 or mobilenetv2, for images of 32 x 32.")]
Norm = Annotated[str, typer.Option(help="Normalisation: group or batch; not used by `plain`.")]
Width = Annotated[int, typer.Option(min=8, help="Width of `cnn` and `plain`.")]
Images = Annotated[int, typer.Option(min=1, help="Images per epoch.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per step.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads on the CPU.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
ServedModel = Annotated[
    Path | None,
    typer.Option("--model", metavar="runs/<id>", help="A finished run; default: the demo's model, untrained."),
]
Callers = Annotated[int, typer.Option(min=1, help="Requests at once; each caller asks again when it is answered.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Seconds of each measurement.")]
MaxDelay = Annotated[float, typer.Option(min=0.0, help="--max-delay-ms of `fednc serve`.")]
Starts = Annotated[int, typer.Option(min=1, max=10, help="Full starts to measure.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repetitions; the best one counts.")]


@app.callback()
def bench() -> None:
    """Measure this machine. Each command prints a table; --json also writes the results to a file."""


@app.command()
def link(
    params: Params = "1e5",
    clients: Clients = "2",
    rounds: Rounds = 20,
    warmup: Warmup = 3,
    codec: Codec = "fp32",
    tls: Tls = "off",
    client_processes: Processes = 0,
    against: Against = "",
    json: Json = "",
) -> None:
    """Measure the cost of a round on the link when training costs nothing.

    The time runs from configure_train to the aggregated arrays in memory,
    over loopback, with the real server and client code in new processes for
    every row. Clients add a known constant to the model; each mean is checked.
    """
    from fednc.bench.link.certificates import TLS
    from fednc.bench.link.driver import compare, every
    from fednc.common.wire.update_codec import CODECS

    settings = every(
        _list("--params", params, _whole),
        _list("--clients", clients, _whole),
        _list("--codec", codec, _one_of(*CODECS.names())),
        _list("--tls", tls, _one_of(*TLS)),
        rounds=rounds,
        warmup=warmup,
        client_processes=client_processes,
    )
    others = _list("--against", against, _one_of("raw", "flower")) if against else []
    _report("link", [row for one in settings for row in compare(one, others, say)], json)


@app.command()
def fold(params: FoldParams = 0, repeats: Repeats = 5, json: Json = "") -> None:
    """Measure how fast updates are aggregated, compared with how fast this machine copies memory.

    Without --params the array is four times the last-level cache, or smaller if memory is short.
    """
    from fednc.bench.fold import measure

    _report("fold", [measure(params, repeats)], json)


@app.command()
def scale(
    clients: Many = 1000,
    params: ScaleParams = 10_000,
    rounds: ScaleRounds = 3,
    tls: Tls = "off",
    json: Json = "",
) -> None:
    """Measure rounds with many clients, each over its own connection."""
    from fednc.bench.link.certificates import TLS
    from fednc.bench.link.scale import measure

    modes = _list("--tls", tls, _one_of(*TLS))
    _report("scale", [measure(clients, params, rounds, say, mode) for mode in modes], json)


@app.command()
def trainer(
    model: Model = "cnn",
    norm: Norm = "group",
    width: Width = 32,
    images: Images = 2048,
    batch: Batch = 64,
    repeats: Repeats = 5,
    device: Device = "auto",
    threads: Threads = 1,
    precision: Precision = "fp32",
    json: Json = "",
) -> None:
    """Measure images per second of the trainer, compared with a plain PyTorch loop on the same model.

    Uses random images on the device. The overhead is the time over that of the faster plain loop, minus 1.
    """
    from fednc.bench.trainer import measure

    row = measure(
        model,
        images=images,
        batch=batch,
        repeats=repeats,
        device=device,
        threads=threads,
        width=width,
        norm=_list("--norm", norm, _one_of("group", "batch"))[0],
        precision=_list("--precision", precision, _one_of("fp32", "bf16"))[0],
    )
    _report("trainer", [row], json)


@app.command()
def search(starts: Starts = 10, json: Json = "") -> None:
    """Measure `fednc search` (ten trials, three rounds of digits, four client processes) beside full starts.

    A full start is a server and four clients for one trial. Both must come to the same metric. `full_to_trial` is
    what a full start costs beside a trial, `loop_to_search` a loop of ten of them beside the whole search.
    """
    from fednc.bench.search import measure

    _report("search", measure(starts, say), json)


@app.command()
def serve(
    model: ServedModel = None,
    callers: Callers = 32,
    seconds: Seconds = 5.0,
    repeats: Repeats = 5,
    max_delay_ms: MaxDelay = 0.0,
    json: Json = "",
) -> None:
    """Measure requests per second of `fednc serve`, beside a bare FastAPI handler with the same model.

    One process each, asked in turn by the same callers. `to_bare` is the median ratio to the bare handler.
    """
    from fednc.bench.serving.driver import ServeLoad, measure

    options = ("--max-delay-ms", str(max_delay_ms))
    _report("serve", measure(model, ServeLoad(callers, seconds, repeats, options), say), json)


def _whole(text: str) -> int:
    if not float(text).is_integer() or float(text) < 1:
        raise ValueError(text)
    return int(float(text))


def _one_of(*allowed: str) -> Callable[[str], str]:
    return {name: name for name in allowed}.__getitem__


def _list(option: str, text: str, parse: Callable[[str], T]) -> list[T]:
    try:
        return [parse(item.strip()) for item in text.split(",")]
    except (ValueError, KeyError) as e:
        raise ConfigError(
            f"{option} {text}: {e} is not allowed; `fednc bench COMMAND --help` shows the values"
        ) from e


def _report(name: str, rows: list[dict[str, Any]], target: str) -> None:
    from fednc.bench.probe import commit, machine

    plain = {key: [row[key] for row in rows] for key in rows[0] if not isinstance(rows[0][key], list)}
    show_table(f"bench {name}", list(plain), list(zip(*plain.values(), strict=True)))
    if target:
        command = shlex.join(["fednc", *sys.argv[1:]])
        write_json(target, {"command": command, "commit": commit(), "machine": machine(), "results": rows})
