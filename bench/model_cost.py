"""What the variants of a comparison cost: parameters, bytes on the link, operations of one prediction.

    python -m fednc.bench.model_cost bench/configs/scenes-tasks.toml

Operations are those of convolutions and matrix products, as torch counts them; a multiplication and an addition
are two. Bytes are those of a model as it is sent without a codec. Trains nothing and reads no data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from fednc.bench.compare.plan import Comparison, final_rows, read_comparison
from fednc.common import seeds
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.tasks import discovery
from fednc.common.tasks.blocks import Traffic
from fednc.common.tasks.round_guide import guide_at


@dataclass(frozen=True)
class Cost:
    """Of one model. `bytes_up`: what a client that owns everything sends in a round; `flops`: of one example."""

    parameters: int
    bytes_up: int
    flops: int


def cost_of(run: RunConfig) -> Cost:
    """The cost of a run's model. Raises ConfigError: its task does not say what an input is like."""
    task = discovery.get(run)
    shape = next((form.shape for form in task.request_forms() if form.shape), None)
    if shape is None:
        raise ConfigError(f"task {task.name!r} does not say what an input is like, so nothing can be counted")
    model = task.inference_model(task.new_model()).eval()
    frame = task.frame(seeds.derive(run.seed, "frame"))
    guide = guide_at(task, frame.etf_KD, ClassMemory.empty(frame.vertices, task.memory_dim), 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.predict(model, torch.zeros(1, *shape), guide)
    state = model.state_dict()
    traffic = Traffic.of(
        {key: state[key] for key in task.shared_keys(model)}, task.trained_keys(model, task.stage(1))
    )
    return Cost(sum(p.numel() for p in model.parameters()), traffic.each_round, counter.get_total_flops())


def lines(plan: Comparison) -> Iterator[str]:
    """A Markdown table: a row for each variant with other costs than those before."""
    yield "| variant | parameters | kB each round | GFLOPs |"
    yield "|---|---|---|---|"
    rates = {(setting.name, variant.tuned_as): plan.tuning.rates[0] for setting, variant in plan.pairs}
    seen: dict[str, Cost] = {}
    for row in final_rows(plan, rates, ""):
        if row.variant not in seen:
            seen[row.variant] = cost_of(row.run)
    for name, cost in seen.items():
        yield f"| {name} | {cost.parameters:,} | {cost.bytes_up / 1000:,.0f} | {cost.flops / 1e9:.4f} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines(read_comparison(Path(sys.argv[1])))) + "\n")
