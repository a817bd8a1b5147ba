"""Opens the MLflow store that keeps the versions: a folder with a database and files, or any MLflow server.

Used by the rest of this folder. MLflow is imported on first use, because that takes seconds, and never with its
telemetry on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from fednc.common import fault_injection
from fednc.common.address import without_secrets
from fednc.common.errors import AddressError, ConfigError, FedncError, MissingExtraError
from fednc.common.files import private_folder
from fednc.common.peer_text import LONG_TEXT, one_line

DEFAULT_STORE = "models"
EXPERIMENT = "fednc"
DATABASE, FILES, LOCK = "mlflow.db", "artifacts", "lock"
_NEW = ".new-"  # beginning of the name of a folder in which a database is made
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Store:
    """One MLflow store.

    Attributes:
        uri: for MLflow.
        folder: of a store on this machine; None: a server, or a database elsewhere.
    """

    def __init__(self, where: str = DEFAULT_STORE) -> None:
        """Name a store. Nothing is opened or made before it is used.

        Args:
            where: a folder, or an MLflow URI: `http://HOST:PORT`, `postgresql://...`.
        """
        if not where:
            raise ConfigError("--store: give a folder or the URI of an MLflow server")
        self.folder = None if "://" in where else Path(where).absolute()
        self._threads, self._depth = threading.RLock(), 0
        self.uri = where if self.folder is None else f"sqlite:///{self.folder / DATABASE}"

    def __str__(self) -> str:
        return str(self.folder or without_secrets(self.uri, self.uri))

    @property
    def exists(self) -> bool:
        """Whether there is anything in it yet; of a server this is not known, and so it is true."""
        return self.folder is None or (self.folder / DATABASE).exists()

    @cached_property
    def client(self) -> Any:
        """An MLflow client. Makes the folder and the database of a new store.

        Raises:
            MissingExtraError: MLflow is not installed.
            AddressError: the store cannot be opened.
        """
        mlflow = load_mlflow()
        with self.locked(), answering(self), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.folder is not None and not (self.folder / DATABASE).exists():
                _make_database(mlflow, self.folder)
            client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            client.search_registered_models(max_results=1)  # makes the tables of a new database on a server
        return client

    @cached_property
    def experiment(self) -> str:
        """Id of the experiment that holds our runs, made on first use."""
        with answering(self):
            found = self.client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                place = None if self.folder is None else (self.folder / FILES).as_uri()
                return str(self.client.create_experiment(EXPERIMENT, artifact_location=place))
        return str(found.experiment_id)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes a store of this machine while the block runs. A server has no such lock.

        May be nested. The kernel releases it when the process ends, however that happens.
        """
        with self._threads:
            if self.folder is None or self._depth:
                yield
                return
            private_folder(self.folder)
            with os.fdopen(os.open(self.folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1


def _make_database(mlflow: Any, folder: Path) -> None:
    """Make a new store's database, whole or not at all. The caller holds the lock.

    MLflow makes it in dozens of steps, and can use none that was left half way.
    """
    for left in folder.glob(f"{_NEW}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_NEW) as temporary:
        place = Path(temporary) / DATABASE
        uri = f"sqlite:///{place}"
        mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models(max_results=1)
        fault_injection.at("registry.database")
        place.replace(folder / DATABASE)


def load_mlflow() -> Any:
    """MLflow, quiet and without telemetry. Raises MissingExtraError."""
    os.environ.update({key: value for key, value in _QUIET.items() if "TELEMETRY" in key or "TRACK" in key})
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow
    except ImportError as e:
        raise MissingExtraError("mlflow", "ops", "the registry of models") from e
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


@contextmanager
def answering(store: Store) -> Iterator[None]:
    """Turn what MLflow and its database raise into our own errors."""
    try:
        yield
    except (FedncError, OSError):
        raise
    except Exception as e:  # MLflow, SQLAlchemy and requests each have their own
        said = without_secrets(one_line(e, LONG_TEXT), store.uri)
        raise AddressError(
            f"--store {store}: it cannot be used ({type(e).__name__}: {said}). Check the folder or the address, "
            "and that this user may read and write there"
        ) from None
