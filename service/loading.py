"""From a model file to an engine that knows how long its runs take. Slow: to be called in a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep

import structlog

from service.engine.cost_model import CostModel
from service.engine.engine import Engine
from service.errors import ModelInvalid, StartupError
from service.metrics import EngineMetrics
from service.model_spec import ModelSpec
from service.repository import ModelFile
from service.settings import Settings
from service.threads import open_runner

Measure = Callable[[int, int], float]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """One version of one model, whose engine is ready to be started."""

    name: str
    version: int
    spec: ModelSpec
    engine: Engine
    fingerprint: str
    """SHA-256 of the file: a state belongs to it."""
    provider: str
    """onnxruntime's name of the provider really in use."""


def open_model(file: ModelFile, settings: Settings, metrics: EngineMetrics, *, beside_others: bool) -> LoadedModel:
    """Load the file and measure its runs; `beside_others` leaves the processor to them half of the time.

    Raises ModelInvalid when it cannot be served, ProviderUnavailable when the provider is not there after all.
    """
    try:
        runner = open_runner(file.path, settings)
        if runner.on_cpu:
            log.warning(
                "model_runs_on_cpu",
                model=file.name,
                version=file.version,
                operators=runner.on_cpu,
                note="CUDA has no peepholes, clip, input_forget or other activations, and no GRU that resets first",
            )
        cost_model = _cost_model(settings, runner.spec)
        cost_model.calibrate(_gently(runner.measure) if beside_others else runner.measure)
        engine = Engine(
            runner,
            cost_model,
            metrics,
            num_slots=settings.num_resident + settings.max_queue + settings.max_batch,
            max_queue=settings.max_queue,
            max_queue_seconds=settings.max_queue_seconds,
        )
    except StartupError:
        raise
    except Exception as error:  # a graph can load and still not run, a float64 LSTM for one
        raise ModelInvalid(f"The model loads but does not run: {' '.join(str(error).split())[:300]}") from error
    return LoadedModel(file.name, file.version, runner.spec, engine, runner.fingerprint, runner.provider)


def _gently(measure: Measure) -> Measure:
    """Rest after each measurement for as long as it took."""

    def measure_and_rest(rows: int, steps: int) -> float:
        seconds = measure(rows, steps)
        sleep(2 * seconds)  # it is the better of two runs
        return seconds

    return measure_and_rest


def _cost_model(settings: Settings, spec: ModelSpec) -> CostModel:
    """Within the bounds of the operator and of the model, whichever are lower."""
    max_rows = min(settings.max_rows, spec.max_batch_size or settings.max_rows)
    max_chunk = min(settings.max_chunk, spec.max_chunk_size or settings.max_chunk)
    return CostModel(max_rows, 1 << (max_chunk.bit_length() - 1))
