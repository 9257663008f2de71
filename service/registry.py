"""Models loaded: (name, version) -> engine, in line with a repository that changes while they serve.

A version that cannot be loaded is kept, with its reason; one that leaves goes to the departures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic, perf_counter

import structlog

from service.departures import Departures, Holder
from service.engine.sessions import require_provider
from service.errors import ModelInvalid, ModelNotFound, ModelNotReady, StartupError, Unavailable, VersionNotFound
from service.loading import LoadedModel as LoadedModel
from service.loading import open_model
from service.metrics import EngineMetrics, Metrics
from service.repository import ModelFile, scan
from service.settings import Settings

_UNLOADED = "It was unloaded."
_LOADING = "It is being loaded."

log = structlog.get_logger(__name__)


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


class Registry:
    """What can be served, by name and version."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._metrics = metrics
        self._versions: dict[str, dict[int, _Version]] = {}
        self._departures = Departures(clock)
        self._unloaded: set[str] = set()
        self._newest: dict[str, int] = {}
        self._one_load = asyncio.Lock()
        self.ready = False

    @property
    def holder(self) -> Holder | None:
        return self._departures.holder

    @holder.setter
    def holder(self, holder: Holder) -> None:
        self._departures.holder = holder

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
        if model := self._departures.find(name, version):
            return model
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
        for model in self._departures.models():
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
        await self._departures.end_sequences(name)

    async def let_go(self) -> None:
        """Stop the engines of leaving versions that nothing uses any more. To be called every second or so."""
        await self._departures.let_go()

    async def close(self, drain_seconds: float) -> None:
        """Finish what was accepted, then let the models go."""
        self.ready = False
        models = [*self.loaded(), *self._departures.models()]
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
            model = await asyncio.to_thread(open_model, file, self._settings, metrics, beside_others=self.ready)
        except StartupError as error:
            if not self.ready and not isinstance(error, ModelInvalid):
                raise
            version.reason = version.reason or error.message
            self._count()
            log.error("model_failed", model=file.name, version=file.version, path=str(file.path), reason=error.message)
            return
        if version.reason:  # it was unloaded meanwhile
            return
        model.engine.start()
        version.model = model
        self._count()
        seconds = round(perf_counter() - begin, 3)
        log.info("model_ready", model=file.name, version=file.version, provider=model.provider, seconds=seconds)

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
            self._departures.add(found.model)
            found.model = None

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
