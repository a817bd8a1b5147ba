"""`LocalGrid` whose clients train in lockstep, each step as one batch of models: `fednc compare --batched`.

Must not know strategies or methods.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from flwr.app import Message

from fednc.bench.local_grid import LocalGrid, Parcel
from fednc.client.app.flower_app import reply_of, training
from fednc.client.training.together import NotTogetherError, train_together
from fednc.client.training.trainer import LocalResult, LocalWork, train
from fednc.common.wire.messages import TRAIN

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
        results = self._train([next(one) for one in started])
        for (message, _), one, result in zip(sent, started, results, strict=True):
            yield self._sent_back(message, reply_of(one, result))

    def _train(self, works: Sequence[LocalWork]) -> list[LocalResult]:
        try:
            return train_together(works)
        except NotTogetherError as e:
            self.alone = str(e)
            log.info("clients train one after the other: %s", e)
            return [train(**vars(work)) for work in works]
