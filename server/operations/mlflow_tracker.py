"""The tracker `mlflow`: a run in an MLflow store, by default a SQLite file beside the runs. Extra `mlflow`.

MLflow would report its use to its makers; that is switched off before it is imported.
"""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from fednc.common.config.tables import Section
from fednc.common.errors import MissingExtraError
from fednc.common.files import PRIVATE_FILE
from fednc.common.trackers import End, Round, Start, Tracker
from fednc.server.operations.told_rounds import ToldRounds
from fednc.server.operations.tracked_values import flat, values_of

STORE = "mlflow.db"
_MOST_PARAMS = 100  # in one call
_LONGEST_PARAM = 500  # characters


class MlflowOptions(Section):
    """`[track.mlflow]`."""

    uri: str = Field("", description="tracking URI; empty: sqlite file mlflow.db in the folder of all runs")
    experiment: str = Field("fednc", description="name of the experiment that the run belongs to", min_length=1)


class MlflowTracker(Tracker):
    """Logs every number of every round as a metric, and the run file as parameters."""

    Options = MlflowOptions
    finish_s = 30.0  # a new store makes its tables first

    def __init__(self) -> None:
        self._told, self._primary = ToldRounds("mlflow"), ""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        try:  # now, because importing it in a thread would slow down the first round
            import mlflow.store.tracking.sqlalchemy_store
            import mlflow.tracking  # noqa: F401
        except ImportError as e:
            raise MissingExtraError(e.name or "mlflow", "mlflow", "the tracker mlflow") from e
        self._client: Any = None
        self._run = ""

    def on_start(self, start: Start) -> None:
        """Make the run in the store, or go on with it."""
        options = start.options
        assert isinstance(options, MlflowOptions)
        self._told.open(start.folder)
        self._primary = start.primary
        assert start.folder is not None
        self._client = _client(options.uri or f"sqlite:///{start.folder.resolve().parent / STORE}")
        self._run = self._continued() or self._new(start, options)
        self._told.note(run=self._run)
        steps = [point.step for point in self._client.get_metric_history(self._run, "round/seconds")]
        self._told.note(number=max(steps, default=0))  # a server that was killed may have noted less

    def _continued(self) -> str:
        """The run of an earlier start, if it is still in the store; else an empty text."""
        from mlflow.exceptions import MlflowException

        if not self._told.run:
            return ""
        try:
            self._client.update_run(self._told.run, status="RUNNING")
        except MlflowException:
            self._told.round = 0  # another store: tell it everything from here on
            return ""
        return self._told.run

    def _new(self, start: Start, options: MlflowOptions) -> str:
        assert start.folder is not None
        found = self._client.get_experiment_by_name(options.experiment)
        if found:
            experiment = found.experiment_id
        else:
            place = None if options.uri else (start.folder.resolve().parent / "mlflow-files").as_uri()
            experiment = self._client.create_experiment(options.experiment, artifact_location=place)
        tags = {"fednc.config_sha256": start.digest, "fednc.primary": start.primary}
        run: str = self._client.create_run(experiment, run_name=start.run_id, tags=tags).info.run_id
        self._log_params(run, flat(start.config))
        return run

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        every = [Param(_allowed(key), value[:_LONGEST_PARAM]) for key, value in params.items()]
        for first in range(0, len(every), _MOST_PARAMS):
            self._client.log_batch(run, params=every[first : first + _MOST_PARAMS])

    def on_round(self, record: Round) -> None:
        """One metric for each value; the round is the step."""
        if not self._told.is_new(record.round):
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        values = values_of(record, self._primary)
        # in one batch, so that a kill leaves a whole round or none
        self._client.log_batch(
            self._run,
            metrics=[Metric(_allowed(name), value, now_ms, record.round) for name, value in values.items()],
        )
        self._told.note(number=record.round)

    def on_end(self, end: End) -> None:
        """End the run in the store."""
        if end.problem:
            self._client.set_tag(self._run, "fednc.problem", end.problem)
        self._client.set_terminated(self._run, "FAILED" if end.problem else "FINISHED")


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # they report every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        place = Path(uri.removeprefix("sqlite:///"))
        place.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE))  # for its owner only
    return MlflowClient(tracking_uri=uri)


def _allowed(name: str) -> str:
    """A name that MLflow takes: letters, digits and a few signs."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]
