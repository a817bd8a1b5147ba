"""The models that are served: which version answers a request, and how one version follows another.

A new version is loaded, verified and warmed up before the old one is released, so a request always finds a model.
One that fails on the way is not served; the old one stays. Runs on the event loop and loads in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fednc.common import model_export
from fednc.common.errors import ConfigError, DataError, FedncError
from fednc.common.peer_text import one_line
from fednc.ops.serving.batching import Batcher, BatchLimits
from fednc.ops.serving.metrics import ServeMetrics
from fednc.ops.serving.predictor import Predictor
from fednc.ops.serving.refusals import Problem, RequestRefusal
from fednc.ops.serving.sources import FoundModel, ModelSource

log = logging.getLogger("fednc.serve")
CHAMPION, CANARY = "champion", "canary"
_AGAIN_S = 30.0  # before a version that failed is tried again


@dataclass(frozen=True)
class WantedModel:
    """One model to serve: the name in its address, what to serve, and what a share of its requests goes to."""

    name: str
    reference: str
    canary: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class ServingRules:
    """What holds for all models.

    Attributes:
        poll_s: seconds between two looks at an alias.
        refuse_stale: never answer from a model whose data is out of date.
    """

    device: torch.device
    limits: BatchLimits
    poll_s: float = 0.5
    refuse_stale: bool = False


class LoadedVersion:
    """A version in memory, with the queue of its requests."""

    def __init__(
        self,
        model: str,
        share: str,
        found: FoundModel,
        predictor: Predictor,
        limits: BatchLimits,
        metrics: ServeMetrics,
    ) -> None:
        self.found, self.predictor, self.share = found, predictor, share
        self.stale = found.stale
        self._batch = metrics.batch.labels(model)
        self.batcher = Batcher(predictor, limits, self._batch.observe)
        self.answered = metrics.requests.labels(model, found.version, share)
        self.seconds = metrics.seconds.labels(model)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        # What every answer carries, so that it can be followed back to its run.
        self.lineage: dict[str, str] = {
            "model_digest": found.digest,
            "model_share": share,
            "run_digest": predictor.model.run.digest,
        }

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the version in memory while the block runs."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def released(self) -> None:
        """Wait for its requests, then end its thread."""
        await self._unused.wait()
        self.batcher.close()


class ServedModel:
    """One name and the versions behind it."""

    def __init__(
        self, wanted: WantedModel, source: ModelSource, rules: ServingRules, metrics: ServeMetrics
    ) -> None:
        self.wanted, self._source, self._rules, self._metrics = wanted, source, rules, metrics
        self.champion: LoadedVersion | None = None
        self.canary: LoadedVersion | None = None
        self._failed: dict[str, tuple[object, float]] = {}  # share: what failed, when to try it again
        self._releasing: set[asyncio.Task[None]] = set()

    @property
    def versions(self) -> list[LoadedVersion]:
        """The versions in use, champion first."""
        return [each for each in (self.champion, self.canary) if each is not None]

    @property
    def is_ready(self) -> bool:
        """Whether it answers requests."""
        return self.champion is not None and not self._is_refused(self.champion)

    def version_for(self, request_id: str, version: str = "") -> LoadedVersion:
        """The version that answers: the one asked for, else the canary for its share of the ids.

        Raises:
            RequestRefusal: that version is not served, or its data is out of date and that is refused.
        """
        chosen = self._named(version) if version else self._drawn(request_id)
        if self._is_refused(chosen):
            raise RequestRefusal(
                f"model {self.wanted.name!r} version {chosen.found.version} is stale ({chosen.stale}) and this "
                "server does not serve stale models",
                Problem.BUSY,
            )
        return chosen

    def _named(self, version: str) -> LoadedVersion:
        for each in self.versions:
            if each.found.version == version:
                return each
        known = ", ".join(each.found.version for each in self.versions)
        raise RequestRefusal(
            f"model {self.wanted.name!r} has no version {version!r} here; served: {known or 'none'}",
            Problem.NOT_FOUND,
        )

    def _drawn(self, request_id: str) -> LoadedVersion:
        if self.champion is None:
            raise RequestRefusal(f"model {self.wanted.name!r} is not loaded yet", Problem.BUSY)
        if self.canary is not None and not self._is_refused(self.canary) and draw(request_id) < self.wanted.share:
            return self.canary
        return self.champion

    def _is_refused(self, version: LoadedVersion) -> bool:
        return bool(version.stale) and self._rules.refuse_stale

    # ---- changing versions -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the first version. Raises FedncError: there is none that can be served."""
        reference = self.wanted.reference
        found = await asyncio.to_thread(self._source.find, reference)
        loaded = await self._load(CHAMPION, found)
        if await self._has_changed(found, reference):
            raise DataError(f"{reference}: changed while it was loaded; start again")
        self._take(CHAMPION, loaded)
        if self.wanted.canary:
            await self._follow(CANARY, self.wanted.canary)

    async def follow(self) -> None:
        """Load what the references mean now, if that has changed. Reports problems and never raises them."""
        await self._follow(CHAMPION, self.wanted.reference)
        if self.wanted.canary:
            await self._follow(CANARY, self.wanted.canary)

    async def close(self) -> None:
        """Wait for all requests."""
        for each in self.versions:
            await each.released()
        for task in list(self._releasing):
            await task

    async def _follow(self, share: str, reference: str) -> None:
        now: LoadedVersion | None = getattr(self, share)
        found: FoundModel | None = None
        try:
            found = await asyncio.to_thread(self._source.find, reference)
            if now is not None and (found.version, found.digest) == (now.found.version, now.found.digest):
                self._failed.pop(share, None)
                self._note_stale(now, found.stale)
                return
            if self._is_waiting(share, found):
                return
            loaded = await self._load(share, found)
            if await self._has_changed(found, reference):
                loaded.batcher.close()  # what was loaded may be neither; the next look finds out
                return
            self._take(share, loaded)
            self._failed.pop(share, None)
        except Exception as e:  # whatever is wrong with a new version, the old one goes on serving
            if found is None or not await self._has_changed(found, reference):
                self._note_failure(share, found or reference, reference, e)

    async def _has_changed(self, found: FoundModel, reference: str) -> bool:
        """Whether a reference now means something else than `found`: a folder may be written while it is read."""
        try:
            now = await asyncio.to_thread(self._source.find, reference)
        except FedncError:
            return False  # the next look tells
        return (now.version, now.digest) != (found.version, found.digest)

    async def _load(self, share: str, found: FoundModel) -> LoadedVersion:
        if found.stale and self._rules.refuse_stale:
            raise DataError(f"{found.reference}: version {found.version} is stale: {found.stale} (--refuse-stale)")
        predictor = await asyncio.to_thread(_load, found, self._rules.device)
        return LoadedVersion(self.wanted.name, share, found, predictor, self._rules.limits, self._metrics)

    def _take(self, share: str, new: LoadedVersion) -> None:
        """From now on requests go to `new`; the version before is released once it has answered its own."""
        old: LoadedVersion | None = getattr(self, share)
        setattr(self, share, new)
        name, found = self.wanted.name, new.found
        self._metrics.swaps.labels(name, "served").inc()
        if old is not None:
            self._metrics.info.remove(name, old.found.version, old.found.digest, share)
            task = asyncio.ensure_future(old.released())
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
        self._metrics.info.labels(name, found.version, found.digest, share).set(1)
        self._metrics.ready.labels(name).set(self.is_ready)
        before = f" instead of version {old.found.version}" if old is not None else ""
        log.info("model %s: serves version %s (%s, %s)%s", name, found.version, share, found.digest[:12], before)
        new.stale = ""
        self._note_stale(new, found.stale)

    def _note_stale(self, version: LoadedVersion, stale: str) -> None:
        if stale and not version.stale:
            log.warning("model %s: version %s is stale: %s", self.wanted.name, version.found.version, stale)
        version.stale = stale
        if version is self.champion:
            self._metrics.stale.labels(self.wanted.name).set(bool(stale))
            self._metrics.ready.labels(self.wanted.name).set(self.is_ready)

    def _is_waiting(self, share: str, found: FoundModel) -> bool:
        failed, again_at = self._failed.get(share, (None, 0.0))
        return failed == found and time.monotonic() < again_at

    def _note_failure(self, share: str, what: object, reference: str, error: Exception) -> None:
        known, again_at = self._failed.get(share, (None, 0.0))
        if known == what and time.monotonic() < again_at:
            return
        self._failed[share] = (what, time.monotonic() + _AGAIN_S)
        self._metrics.swaps.labels(self.wanted.name, "failed").inc()
        kept: LoadedVersion | None = getattr(self, share)
        stays = f"version {kept.found.version} goes on serving" if kept is not None else "nothing is served"
        reason = one_line(error, 300) if isinstance(error, FedncError | RequestRefusal) else type(error).__name__
        if not isinstance(error, FedncError | RequestRefusal):
            log.debug("unexpected", exc_info=error)
        log.error("model %s (%s): %s cannot be served: %s; %s", self.wanted.name, share, reference, reason, stays)


class ModelShelf:
    """All models of the server, by name."""

    def __init__(
        self, wanted: tuple[WantedModel, ...], source: ModelSource, rules: ServingRules, metrics: ServeMetrics
    ) -> None:
        """Raises ConfigError: two models would have one name."""
        self._rules = rules
        self.models = {each.name: ServedModel(each, source, rules, metrics) for each in wanted}
        if len(self.models) < len(wanted):
            raise ConfigError("two models have the same name: give one of them another with NAME=MODEL@ALIAS")

    def __getitem__(self, name: str) -> ServedModel:
        """The model called `name`. Raises RequestRefusal."""
        found = self.models.get(name)
        if found is None:
            raise RequestRefusal(
                f"no model {name!r} here; served: {', '.join(sorted(self.models))}", Problem.NOT_FOUND
            )
        return found

    @property
    def is_ready(self) -> bool:
        """Whether every model answers."""
        return all(each.is_ready for each in self.models.values())

    async def start(self) -> None:
        """Load all models. Raises FedncError."""
        for each in self.models.values():
            await each.start()

    async def watch(self) -> None:
        """Follow all aliases until cancelled; a slow one does not hold up the others."""
        await asyncio.gather(*(self._watch(each) for each in self.models.values()))

    async def _watch(self, model: ServedModel) -> None:
        while True:
            await asyncio.sleep(self._rules.poll_s)
            await model.follow()

    async def close(self) -> None:
        """Wait for all requests."""
        for each in self.models.values():
            await each.close()


def draw(request_id: str) -> float:
    """A number in 0..1 that depends on the id alone, evenly spread over ids."""
    return int.from_bytes(hashlib.sha256(request_id.encode(errors="surrogatepass")).digest()[:8]) / 2**64


def _load(found: FoundModel, device: torch.device) -> Predictor:
    """Raises FedncError or RequestRefusal: the files were changed, or the model cannot compute."""
    predictor = Predictor(model_export.load(found.folder), device)
    predictor.warm_up()
    return predictor
