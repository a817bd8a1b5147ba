"""`LocalGrid` whose clients train in lockstep, each step as one batch of models: `fednc compare --batched`.

Must not know strategies or methods.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from flwr.app import Message
from torch import Tensor

from fednc.bench.local_grid import LocalGrid, Parcel
from fednc.client.app.flower_app import reply_of, training
from fednc.client.training.together import NotTogetherError, train_together
from fednc.client.training.trainer import LocalResult, LocalWork, train
from fednc.common.wire.messages import TRAIN

RandomState = tuple[Tensor, list[Tensor]]  # of torch on the CPU, and on each GPU

log = logging.getLogger("fednc.bench")


class BatchedGrid(LocalGrid):
    """The grid of one run with fednc's own app.

    Attributes:
        alone: why clients have trained one after the other; "" as long as all have trained together.
    """

    alone = ""

    def _answers(self, sent: Sequence[tuple[Message, Parcel]]) -> Iterator[Message]:
        if self.alone or not sent or any(message.metadata.message_type != TRAIN for message, _ in sent):
            yield from super()._answers(sent)
            return
        started = [
            training(self._received(message, parcel), self._hosts[message.metadata.dst_node_id].context)
            for message, parcel in sent
        ]
        works, states = [], []
        for one in started:
            works.append(next(one))
            states.append(_random_state())  # preparing the next one seeds again
        results = self._train(works, states)
        for (message, _), one, result in zip(sent, started, results, strict=True):
            yield self._sent_back(message, reply_of(one, result))

    def _train(self, works: Sequence[LocalWork], states: Sequence[RandomState]) -> list[LocalResult]:
        try:
            return train_together(works)
        except NotTogetherError as e:
            self.alone = str(e)
            log.info("clients train one after the other: %s", e)
        results = []
        for work, (state, of_gpus) in zip(works, states, strict=True):
            torch.set_rng_state(state)
            if of_gpus:
                torch.cuda.set_rng_state_all(of_gpus)
            results.append(train(**vars(work)))
        return results


def _random_state() -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
