"""The tracker `tensorboard`: event files in the run's folder, for `tensorboard --logdir`. Extra `tensorboard`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fednc.common.errors import MissingExtraError
from fednc.common.trackers import End, Round, Start, Tracker
from fednc.server.operations.told_rounds import ToldRounds
from fednc.server.operations.tracked_values import flat, values_of

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes every number of every round as a scalar. Uses TensorBoard's own writer; TensorFlow is not needed."""

    finish_s = 10.0  # the first run on a machine imports slowly

    def __init__(self) -> None:
        self._told, self._primary = ToldRounds("tensorboard"), ""
        try:  # now, because importing it in a thread would slow down the first round
            import tensorboard.summary.writer.event_file_writer  # noqa: F401
        except ImportError as e:
            raise MissingExtraError("tensorboard", "tensorboard", "the tracker tensorboard") from e
        self._writer: EventFileWriter | None = None

    def on_start(self, start: Start) -> None:
        """Open a new event file beside those of earlier starts; TensorBoard reads all of them as one run."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._told.open(start.folder)
        self._primary = start.primary
        assert start.folder is not None
        self._writer = EventFileWriter(str(start.folder / FOLDER))
        if not self._told.run:
            lines = [f"    {key} = {value}" for key, value in flat(start.config).items()]
            self._add(0, [_text("run file", "\n".join(lines))])
            self._told.note(run=start.run_id)

    def on_round(self, record: Round) -> None:
        """One scalar for each value, on disk at once."""
        if not self._told.is_new(record.round):
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = values_of(record, self._primary)
        self._add(record.round, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._told.note(number=record.round)

    def on_end(self, end: End) -> None:
        """Close the file."""
        del end
        if self._writer:
            self._writer.close()

    def _add(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        assert self._writer is not None
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()


def _text(tag: str, text: str) -> Any:
    """A value for TensorBoard's page of texts."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(
        tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()])
    )
