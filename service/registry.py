"""Models loaded: (name, version) -> engine, in line with a repository that changes while they serve.

A version that leaves takes no new work, and its engine stops once nothing uses it any more. One that cannot be loaded
is kept, with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic, perf_counter
from typing import Protocol

import structlog

from service.engine.engine import Engine
from service.engine.model_runner import require_provider
from service.errors import ModelInvalid, ModelNotFound, ModelNotReady, StartupError, Unavailable, VersionNotFound
from service.loading import open_model
from service.metrics import EngineMetrics, Metrics
from service.model_spec import ModelSpec
from service.repository import ModelFile, scan
from service.settings import Settings
from service.stores.store import VERSION_UNLOADED

QUIET_SECONDS = 10.0
"""How long a version that leaves must have done nothing before its engine stops. A call that looked it up before it
left has reached the engine by then."""

_UNLOADED = "It was unloaded."
_LOADING = "It is being loaded."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """One version of one model, ready to run."""

    name: str
    version: int
    spec: ModelSpec
    engine: Engine
    fingerprint: str
    """SHA-256 of the file: a state belongs to it."""
    provider: str
    """onnxruntime's name of the provider really in use."""


class VersionState(StrEnum):
    """What a version can do, in the words of the Open Inference Protocol's repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    name: str
    version: int
    state: VersionState
    reason: str = ""
    """Why it is not ready."""


class Holder(Protocol):
    """Whoever keeps versions in use beyond single calls: the sequences."""

    def num_held(self, model: LoadedModel) -> int: ...

    async def end_all(self, model: LoadedModel, reason: str) -> None:
        """End every sequence of the version after the calls under way, and forget the version."""


@dataclass(slots=True)
class _Version:
    """One version in the repository: ready with a `model`, being loaded without a `reason`, else not available."""

    file: ModelFile
    model: LoadedModel | None = None
    reason: str = ""

    @property
    def entry(self) -> IndexEntry:
        if self.model:
            return IndexEntry(self.file.name, self.file.version, VersionState.READY)
        state = VersionState.UNAVAILABLE if self.reason else VersionState.LOADING
        return IndexEntry(self.file.name, self.file.version, state, self.reason or _LOADING)


@dataclass(slots=True)
class _Leaving:
    """A version that takes no new work, and when it was last seen in use."""

    model: LoadedModel
    used_at: float
    num_runs: int = -1
    ends_sequences: bool = False
    """Unloaded: it does not wait for sequences to end by themselves."""


class Registry:
    """What can be served, by name and version."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._versions: dict[str, dict[int, _Version]] = {}
        self._leaving: list[_Leaving] = []
        self._unloaded: set[str] = set()
        self._newest: dict[str, int] = {}
        self._one_load = asyncio.Lock()
        self.holder: Holder | None = None
        self.ready = False

    # -- find --------------------------------------------------------------------------------------------------------

    def get(self, name: str, version: int | None = None) -> LoadedModel:
        """The version asked for, or the newest that is ready. Raises ModelNotFound, VersionNotFound, ModelNotReady."""
        versions = self._versions.get(name)
        if not versions:
            raise ModelNotFound(f"There is no model {name[:128]!r}. GET /v1/models lists what there is.")
        if version is None:
            version = max((number for number, found in versions.items() if found.model), default=max(versions))
        found = versions.get(version)
        if found is None:
            ready = sorted(number for number, found in versions.items() if found.model)
            raise VersionNotFound(f"Model {name!r} has no version {version}.", expected=ready, received=version)
        if found.model is None:
            raise _not_ready(name, version, found.reason)
        return found.model

    def get_running(self, name: str, version: int) -> LoadedModel:
        """For a sequence that began with it: also a version that is leaving. Raises like `get`."""
        for left in self._leaving:
            if (left.model.name, left.model.version) == (name, version) and not left.ends_sequences:
                return left.model
        if self.is_unloaded(name):
            raise VersionNotFound(f"Model {name!r} was unloaded.")
        return self.get(name, version)

    def is_unloaded(self, name: str) -> bool:
        """By a call, and not loaded again since."""
        return name in self._unloaded

    def newest_seen(self, name: str) -> int:
        """The highest version that ever was in the repository while this process ran; 0: there was no such model."""
        return self._newest.get(name, 0)

    def loaded(self) -> list[LoadedModel]:
        """Every version that takes new work."""
        return [found.model for found in self._all() if found.model]

    def names(self) -> list[str]:
        return sorted(name for name, versions in self._versions.items() if versions)

    def names_seen(self) -> list[str]:
        """Also of models that are gone from the repository."""
        return sorted(self._newest)

    def versions(self, name: str) -> tuple[list[LoadedModel], list[IndexEntry]]:
        """What is ready of a model and what is not, oldest first."""
        versions = [found for _, found in sorted(self._versions.get(name, {}).items())]
        return [found.model for found in versions if found.model], [v.entry for v in versions if not v.model]

    def index(self) -> list[IndexEntry]:
        """Every version in the repository, and those that are leaving, by name and version."""
        entries = {(found.file.name, found.file.version): found.entry for found in self._all()}
        for model in (left.model for left in self._leaving):
            entry = entries.get((model.name, model.version))
            if entry is None or entry.state is VersionState.UNAVAILABLE:
                leaving = IndexEntry(model.name, model.version, VersionState.UNLOADING, "Its calls or sequences go on.")
                entries[model.name, model.version] = leaving
        return [entry for _, entry in sorted(entries.items(), key=lambda item: item[0])]

    # -- come and go -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Load every model of the repository. One that is broken is logged and does not stop the others.

        Raises SettingsInvalid or ProviderUnavailable when nothing could be served at all.
        """
        require_provider(self._settings.provider)
        for file in scan(self._settings.model_repository):
            await self._load_one(file)
        self.ready = True

    async def refresh(self) -> None:
        """Look at the repository again: load what is new, or was broken and has changed; let go of what is no more."""
        async with self._one_load:
            try:
                files = await asyncio.to_thread(scan, self._settings.model_repository)
            except StartupError as error:
                log.warning("repository_unreadable", reason=error.message)
                return
            self._retire_missing(files)
            for file in files:
                await self._take_up(file)

    async def load_model(self, name: str) -> None:
        """Load the versions of a model that are not ready. Raises Unavailable, ModelNotFound, ModelNotReady."""
        self._require_control()
        async with self._one_load:
            try:
                files = await asyncio.to_thread(scan, self._settings.model_repository)
            except StartupError as error:
                raise Unavailable(f"The model repository cannot be read: {error.message}") from error
            files = [file for file in files if file.name == name]
            if not files:
                raise ModelNotFound(f"There is no model {name[:128]!r} in the repository.")
            self._unloaded.discard(name)
            for file in files:
                known = self._versions.get(name, {}).get(file.version)
                if not (known and known.model):
                    await self._load_one(file)
        ready, others = self.versions(name)
        if not ready:
            raise ModelNotReady(f"No version of {name!r} could be loaded. {others[-1].reason}" if others else _UNLOADED)

    async def unload_model(self, name: str) -> None:
        """Take no new work for a model, finish its calls and end its sequences; `let_go` does the rest.

        It stays unloaded, newer versions too, until `load_model`. Raises Unavailable, ModelNotFound.
        """
        self._require_control()
        if not self._versions.get(name):
            raise ModelNotFound(f"There is no model {name[:128]!r}. GET /v1/models lists what there is.")
        self._unloaded.add(name)
        for found in self._versions[name].values():
            self._retire(found)
            found.reason = _UNLOADED
        self._count()
        leaving = [left for left in self._leaving if left.model.name == name]
        for left in leaving:
            left.ends_sequences = True
        await asyncio.gather(*(self._end_sequences(left.model) for left in leaving))

    async def let_go(self) -> None:
        """Stop the engines of leaving versions that nothing uses any more. To be called every second or so."""
        for left in list(self._leaving):
            if left.ends_sequences and self._num_held(left.model):
                await self._end_sequences(left.model)  # of a call that found the model before it was unloaded
            if self._is_in_use(left):
                continue
            await self._end_sequences(left.model)
            self._leaving.remove(left)
            await left.model.engine.stop()
            log.info("model_unloaded", model=left.model.name, version=left.model.version)

    async def close(self, drain_seconds: float) -> None:
        """Finish what was accepted, then let the models go."""
        self.ready = False
        models = [*self.loaded(), *(left.model for left in self._leaving)]
        await asyncio.gather(*(model.engine.stop(drain_seconds) for model in models))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[_Version]:
        return (found for versions in self._versions.values() for found in versions.values())

    async def _take_up(self, file: ModelFile) -> None:
        known = self._versions.get(file.name, {}).get(file.version)
        if file.name in self._unloaded:
            self._versions.setdefault(file.name, {})[file.version] = _Version(file, reason=_UNLOADED)
        elif known is None or (known.model is None and known.file.stamp != file.stamp):
            await self._load_one(file)
        elif known.file.stamp != file.stamp:
            known.file = file
            log.warning(
                "model_file_changed",
                model=file.name,
                version=file.version,
                note="the one loaded goes on; publish a change as a new version",
            )

    async def _load_one(self, file: ModelFile) -> None:
        begin, version = perf_counter(), _Version(file)
        self._newest[file.name] = max(file.version, self.newest_seen(file.name))
        self._versions.setdefault(file.name, {})[file.version] = version
        metrics = EngineMetrics(self._metrics, file.name, file.version)
        try:
            opened = await asyncio.to_thread(open_model, file, self._settings, metrics, beside_others=self.ready)
        except StartupError as error:
            if not self.ready and not isinstance(error, ModelInvalid):
                raise
            version.reason = version.reason or error.message
            self._count()
            log.error("model_failed", model=file.name, version=file.version, path=str(file.path), reason=error.message)
            return
        if version.reason:  # it was unloaded meanwhile
            return
        opened.engine.start()
        version.model = LoadedModel(
            file.name, file.version, opened.spec, opened.engine, opened.fingerprint, opened.provider
        )
        self._count()
        seconds = round(perf_counter() - begin, 3)
        log.info("model_ready", model=file.name, version=file.version, provider=opened.provider, seconds=seconds)

    def _retire_missing(self, files: list[ModelFile]) -> None:
        stamps = {(file.name, file.version): file.stamp for file in files}
        for found in list(self._all()):
            key = found.file.name, found.file.version
            if key not in stamps or (found.model and stamps[key] is None):
                self._retire(found)
                del self._versions[key[0]][key[1]]
        self._versions = {name: versions for name, versions in self._versions.items() if versions}
        self._count()

    def _retire(self, found: _Version) -> None:
        """Take no new work for a version."""
        if found.model:
            self._leaving.append(_Leaving(found.model, self._clock()))
            log.info("model_leaves", model=found.model.name, version=found.model.version)
            found.model = None

    def _is_in_use(self, left: _Leaving) -> bool:
        engine, now = left.model.engine, self._clock()
        if engine.num_slots_used or engine.num_runs != left.num_runs or self._num_held(left.model):
            left.num_runs, left.used_at = engine.num_runs, now
        return now - left.used_at < QUIET_SECONDS

    def _num_held(self, model: LoadedModel) -> int:
        return self.holder.num_held(model) if self.holder else 0

    async def _end_sequences(self, model: LoadedModel) -> None:
        if self.holder:
            await self.holder.end_all(model, VERSION_UNLOADED)

    def _count(self) -> None:
        entries = [found.entry for found in self._all()]
        failed = [e for e in entries if e.state is VersionState.UNAVAILABLE and e.reason != _UNLOADED]
        self._metrics.models_ready.set(sum(entry.state is VersionState.READY for entry in entries))
        self._metrics.models_failed.set(len(failed))

    def _require_control(self) -> None:
        if not self._settings.model_control:
            raise Unavailable("Loading and unloading by call is off. Set CAROUSEL_MODEL_CONTROL=1 to allow it.")


def _not_ready(name: str, version: int, reason: str) -> ModelNotReady:
    if not reason:
        return ModelNotReady(f"Version {version} of {name!r} is being loaded. Send the call again in a moment.")
    if reason == _UNLOADED:
        return ModelNotReady(f"Version {version} of {name!r} was unloaded.")
    return ModelNotReady(f"Version {version} of {name!r} could not be loaded. GET /v1/models has the reason.")
