"""`python -m fednc.bench.drift_alarms`: how often drift alarms are false, and which shifts they find, in real
runs.

Runs one run file with several seeds in this process, first with the clients' data as it is, then with one client
whose images are changed at each of several strengths, and prints a table. The clients' data are parts of one .npz
file, drawn at random, so nobody drifts in the first case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run, read_run_file
from fednc.common.files import write_atomically
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ClientDrifts, Event

Images = np.ndarray[Any, Any]
Change = Callable[[Images, np.random.Generator], Images]

# What one client's images (bytes, [N, H, W, ...]) go through.
CHANGES: Mapping[str, Change] = {
    "none": lambda x, _: x,
    "brightness 0.9": lambda x, _: x * 0.9,
    "brightness 0.7": lambda x, _: x * 0.7,
    "noise 0.1": lambda x, draw: x + draw.normal(0, 25.5, x.shape),
    "noise 0.3": lambda x, draw: x + draw.normal(0, 76.5, x.shape),
    "one pixel to the right": lambda x, _: np.roll(x, 1, axis=2),
    "mirrored": lambda x, _: x[:, :, ::-1],
    "negative": lambda x, _: 255 - x,
}


def main() -> None:
    """Read the arguments, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_file", type=Path, help="its [split] is left out")
    parser.add_argument("data", type=Path, help="an .npz file with x_train (bytes), y_train, classes")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.01, help="the wanted rate of false alarms")
    parser.add_argument(
        "--in-order", action="store_true", help="parts of the data as it lies, not drawn at random"
    )
    parser.add_argument("--changes", default=",".join(CHANGES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tables = read_run_file(args.run_file).model_dump(exclude_unset=True)
    tables.pop("split", None)
    tables["evaluate"] = {"drift_rate": args.rate}
    rounds = {**tables.get("rounds", {}), "min_clients": args.clients}
    found = {}
    for change in args.changes.split(","):
        runs = [
            told_in(parse_run({**tables, "seed": seed, "rounds": rounds}), args, CHANGES[change], seed)
            for seed in range(args.seeds)
        ]
        first, others = (sum(each[place] for each in runs) for place in (0, 1))
        found[change] = {
            "runs": args.seeds,
            "first": first,
            "others": others,
            "honest": (args.clients - 1) * args.seeds,
        }
        sys.stdout.write(f"{change}: client 0 alarmed in {first} of {args.seeds} runs; others: {others}\n")
        sys.stdout.flush()
    if args.json:
        told = {key: str(value) for key, value in vars(args).items() if key not in ("json", "data", "run_file")}
        write_atomically(args.json, json.dumps({"settings": told, "found": found}, indent=1).encode())


def told_in(run: RunConfig, args: argparse.Namespace, change: Change, seed: int) -> tuple[int, int]:
    """(whether client 0 had an alarm in any round, how many of the others had) in one run."""
    told: list[Event] = []
    events = EventLog()
    events.listen(told.append)
    with tempfile.TemporaryDirectory() as temporary:
        clients = _write_clients(args, change, seed, Path(temporary))
        with LocalGrid(run, clients) as grid:
            FederatedRun(run, events).execute(grid, Surroundings(name_of=grid.name_of))
    names = {event.node for event in told if isinstance(event, ClientDrifts)}
    return int("client-0" in names), len(names - {"client-0"})


def _write_clients(args: argparse.Namespace, change: Change, seed: int, folder: Path) -> list[ClientConfig]:
    draw, data = np.random.default_rng(seed), np.load(args.data)
    order = np.arange(len(data["y_train"])) if args.in_order else draw.permutation(len(data["y_train"]))
    clients = []
    for number, part in enumerate(np.array_split(order, args.clients)):
        image = data["x_train"][part]
        if number == 0:
            image = change(image.astype(np.float64), draw).clip(0, 255).round().astype(np.uint8)
        path = folder / f"{number}.npz"
        np.savez(path, x_train=image, y_train=data["y_train"][part], classes=data["classes"])
        clients.append(ClientConfig(name=f"client-{number}", data=f"npz:{path}", device="cpu"))
    return clients


if __name__ == "__main__":
    main()
