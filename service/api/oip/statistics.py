"""What each model version has done since it was loaded, in the form of the protocol's statistics extension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.api.call import Call, Reply
from service.api.oip.models import model_of
from service.metrics import EngineMetrics, Tally
from service.registry import LoadedModel

NANOSECONDS = 1_000_000_000
_NONE = Tally()


async def all_statistics(call: Call) -> Reply:
    """Of every version that is ready."""
    return await _answer(call, call.service.registry.loaded())


async def model_statistics(call: Call) -> Reply:
    """Of the versions of one model that are ready, or of the one in the path.

    A row counts as one inference, a run of the model as one execution; times of a run count for each row in it, but
    once in `batch_stats`. `compute_input` is what goes before the model, gathering states and inputs, `compute_output`
    what comes after it. `sequence_stats` are our own.
    """
    newest = model_of(call)
    if "version" in call.scope["path_params"]:
        return await _answer(call, [newest])
    return await _answer(call, call.service.registry.versions(newest.name)[0])


async def _answer(call: Call, models: Iterable[LoadedModel]) -> Reply:
    await call.service.sequences.count()
    return call.answer({"model_stats": [_statistics(call, model) for model in models]})


def _statistics(call: Call, model: LoadedModel) -> dict[str, Any]:
    metrics = model.engine.metrics
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": int(metrics.last_run_at * 1000),
        "inference_count": metrics.succeeded.count,
        "execution_count": sum(tallies.model.count for tallies in metrics.runs.values()),
        "inference_stats": _inference_stats(metrics),
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(tallies.before),
                "compute_infer": _duration(tallies.model),
                "compute_output": _duration(tallies.after),
            }
            for rows, tallies in sorted(metrics.runs.items())
        ],
        "sequence_stats": call.service.metrics.sequences_of(model.name),
    }


def _inference_stats(metrics: EngineMetrics) -> dict[str, Any]:
    before, run, after, queue = Tally(), Tally(), Tally(), Tally()
    for rows, tallies in metrics.runs.items():
        for total, tally in ((before, tallies.before), (run, tallies.model), (after, tallies.after)):
            total.add(rows * tally.count, rows * tally.seconds)
    queue.add(sum(metrics.queue_seconds.counts), metrics.queue_seconds.total)
    parts = {"queue": queue, "compute_input": before, "compute_infer": run, "compute_output": after}
    parts = {"success": metrics.succeeded, "fail": metrics.failed, **parts, "cache_hit": _NONE, "cache_miss": _NONE}
    return {name: _duration(tally) for name, tally in parts.items()}


def _duration(tally: Tally) -> dict[str, int]:
    return {"count": tally.count, "ns": round(tally.seconds * NANOSECONDS)}
