"""`python -m fednc.bench.confidence`: what calibration and personal models are worth, for several read-outs.

Runs one run file with each read-out and seed in this process, and prints two tables:
confidences on the server's test data before and after, and the clients' own models on what they hold out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run, read_run_file
from fednc.common.files import write_atomically
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.result_files import summary_of
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog

Summary = Mapping[str, Any]


def main() -> None:
    """Read the arguments, run everything, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_file", type=Path)
    parser.add_argument(
        "clients", nargs="+", metavar="NAME=SPEC", help="each client's data; the test data is in it"
    )
    parser.add_argument("--readouts", default="vertex,memory,blend,discriminant")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--val-share", type=float, default=0.1)
    parser.add_argument("--json", type=Path, help="write every summary here")
    args = parser.parse_args()
    clients = dict(each.split("=", 1) for each in args.clients)
    found = {
        readout: [
            run_once(args.run_file, readout, int(seed), clients, args.val_share) for seed in args.seeds.split(",")
        ]
        for readout in args.readouts.split(",")
    }
    if args.json:
        write_atomically(args.json, json.dumps(found, indent=1).encode())
    sys.stdout.write("\n".join([*confidence_table(found), "", *personal_table(found), ""]))


def run_once(path: Path, readout: str, seed: int, clients: Mapping[str, str], val_share: float) -> Summary:
    """The summary of one run with this read-out and seed."""
    values = read_run_file(path).model_dump(exclude_unset=True)
    values = {**values, "seed": seed, "method": {**values.get("method", {}), "readout": readout}}
    if "split" in values:
        values["split"] = {**values["split"], "seed": seed}
    run = parse_run(values)
    configs = [ClientConfig(name=n, data=d, device="cpu", val_share=val_share) for n, d in clients.items()]
    with LocalGrid(run, configs) as grid:
        result = FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of))
    return summary_of(f"{readout}-{seed}", result)


def confidence_table(found: Mapping[str, Sequence[Summary]]) -> Iterator[str]:
    """One line per read-out: means over the seeds, before -> after."""
    metric = next(iter(found.values()))[0]["metric"]["name"]
    yield f"| read-out | test {metric} | temperature | calibration error | log-loss | above 0.999 |"
    yield "|---|---|---|---|---|---|"
    for readout, runs in found.items():
        name = runs[0]["metric"]["name"]
        tests = [run["calibration"]["test"] for run in runs]
        pairs = [(test["before"], test.get("after", test["before"])) for test in tests]
        error, loss, sure = (
            [mean(pair[side][key] for pair in pairs) for side in (0, 1)]
            for key in ("calibration_error", "loss", "sure")
        )
        fitted = [run["calibration"].get("temperature", 1.0) for run in runs]
        yield (
            f"| {readout} | {mean(run[name] for run in runs):.1%} | {min(fitted):.2f} to {max(fitted):.2f} | "
            f"{error[0]:.1%} → {error[1]:.1%} | {loss[0]:.3f} → {loss[1]:.3f} | {sure[0]:.0%} → {sure[1]:.0%} |"
        )


def personal_table(found: Mapping[str, Sequence[Summary]]) -> Iterator[str]:
    """One line per read-out and way: the primary metric pooled, and over the clients."""
    yield "| read-out | model | pooled | worst client | median client | log-loss |"
    yield "|---|---|---|---|---|---|"
    for readout, runs in found.items():
        reports = [run["personal"] for run in runs if run.get("personal")]
        for way in reports[0]["pooled"] if reports else ():
            name = runs[0]["metric"]["name"]
            pooled, worst, median = (
                mean(values)
                for values in (
                    [one["pooled"][way][name] for one in reports],
                    [one["spread"][way]["min"] for one in reports],
                    [one["spread"][way]["median"] for one in reports],
                )
            )
            losses = [one["pooled"][way].get("loss") for one in reports]
            loss = "-" if None in losses else f"{mean(filter(None, losses)):.3f}"
            yield f"| {readout} | {way} | {pooled:.1%} | {worst:.1%} | {median:.1%} | {loss} |"


if __name__ == "__main__":
    main()
