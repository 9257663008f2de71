"""Models loaded: (name, version) -> engine. A model that cannot be loaded is kept, with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

import structlog

from service.engine.cost_model import CostModel
from service.engine.engine import Engine
from service.engine.model_runner import ModelRunner, require_provider
from service.errors import ModelInvalid, ModelNotFound, ModelNotReady, VersionNotFound
from service.metrics import EngineMetrics, Metrics
from service.model_spec import ModelSpec
from service.repository import ModelFile, scan
from service.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True)
class FailedModel:
    name: str
    version: int
    reason: str


class Registry:
    """What can be served, by name and version."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._loaded: dict[str, dict[int, LoadedModel]] = {}
        self._failed: dict[str, dict[int, FailedModel]] = {}
        self.ready = False

    async def load(self) -> None:
        """Load every model of the repository. One that is broken is logged and does not stop the others.

        Raises SettingsInvalid or ProviderUnavailable when nothing could be served at all.
        """
        require_provider(self._settings.provider)
        for file in scan(self._settings.model_repository):
            await self._load_one(file)
        self._metrics.models_ready.set(sum(map(len, self._loaded.values())))
        self._metrics.models_failed.set(sum(map(len, self._failed.values())))
        self.ready = True

    async def close(self, drain_seconds: float) -> None:
        """Finish what was accepted, then let the models go."""
        self.ready = False
        await asyncio.gather(*(model.engine.stop(drain_seconds) for model in self.loaded()))

    def get(self, name: str, version: int | None = None) -> LoadedModel:
        """The version asked for, or the newest that is ready. Raises ModelNotFound, VersionNotFound, ModelNotReady."""
        loaded, failed = self._loaded.get(name, {}), self._failed.get(name, {})
        if not loaded and not failed:
            raise ModelNotFound(f"There is no model {name[:128]!r}. GET /v1/models lists what there is.")
        if version is None:
            version = max(loaded, default=max(failed, default=0))
        if version in loaded:
            return loaded[version]
        if version in failed:
            raise ModelNotReady(f"Version {version} of {name!r} could not be loaded. GET /v1/models has the reason.")
        versions = sorted(loaded)
        raise VersionNotFound(f"Model {name!r} has no version {version}.", expected=versions, received=version)

    def loaded(self) -> Iterable[LoadedModel]:
        return [model for versions in self._loaded.values() for model in versions.values()]

    def names(self) -> list[str]:
        return sorted(self._loaded.keys() | self._failed.keys())

    def versions(self, name: str) -> tuple[list[LoadedModel], list[FailedModel]]:
        """What is loaded of a model and what failed, oldest first."""
        loaded, failed = self._loaded.get(name, {}), self._failed.get(name, {})
        return [loaded[v] for v in sorted(loaded)], [failed[v] for v in sorted(failed)]

    async def _load_one(self, file: ModelFile) -> None:
        begin = perf_counter()
        try:
            model = await asyncio.to_thread(self._open, file)
        except ModelInvalid as error:
            self._failed.setdefault(file.name, {})[file.version] = FailedModel(file.name, file.version, error.message)
            log.error("model_failed", model=file.name, version=file.version, path=str(file.path), reason=error.message)
            return
        model.engine.start()
        self._loaded.setdefault(file.name, {})[file.version] = model
        seconds = round(perf_counter() - begin, 3)
        log.info("model_ready", model=file.name, version=file.version, provider=model.provider, seconds=seconds)

    def _open(self, file: ModelFile) -> LoadedModel:
        settings = self._settings
        runner = ModelRunner(file.path, provider=settings.provider, num_threads=settings.num_threads)
        cost_model = _cost_model(settings, runner.spec)
        try:
            cost_model.calibrate(runner.measure)
        except ModelInvalid:
            raise
        except Exception as error:  # a graph can load and still not run, a float64 LSTM for one
            raise ModelInvalid(f"The model loads but does not run: {' '.join(str(error).split())[:300]}") from error
        engine = Engine(
            runner,
            cost_model,
            EngineMetrics(self._metrics, file.name, file.version),
            num_slots=settings.max_sequences + settings.max_queue + settings.max_batch,
            max_queue=settings.max_queue,
            max_queue_seconds=settings.max_queue_seconds,
        )
        return LoadedModel(file.name, file.version, runner.spec, engine, runner.fingerprint, runner.provider)


def _cost_model(settings: Settings, spec: ModelSpec) -> CostModel:
    """Within the bounds of the operator and of the model, whichever are lower."""
    max_rows = min(settings.max_rows, spec.max_batch_size or settings.max_rows)
    max_chunk = min(settings.max_chunk, spec.max_chunk_size or settings.max_chunk)
    return CostModel(max_rows, 1 << (max_chunk.bit_length() - 1))
