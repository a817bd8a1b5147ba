"""Training on the server, on the class memory alone; clients send only sums.

Called by the strategy in stages for which the task asks for it.
"""

from __future__ import annotations

import torch

from fednc.common.learning.round_context import Guide
from fednc.common.tasks.incremental import Incremental
from fednc.common.tasks.stages import Stage
from fednc.common.wire import arrays
from fednc.server.rounds.global_state import GlobalState


def fit_centrally(
    task: Incremental, state: GlobalState, guide: Guide, stage: Stage, steps: int, generator: torch.Generator
) -> float:
    """Train the tensors that the task fits, put them into `state`, and return the loss."""
    section = stage.train.model_copy(update={"epochs": steps})
    with torch.random.fork_rng(devices=[]):
        model = task.new_model()
    model.load_state_dict(state.model, strict=False)
    loss = task.fit(model, guide, section, generator)
    trained = model.state_dict()
    state.put(arrays.to_record({key: trained[key] for key in state.trainable}))
    return loss
