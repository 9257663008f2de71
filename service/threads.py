"""How many threads a run gets: as many as pay, by measurement.

On two cores a second thread makes an LSTM or GRU of 512 units 1.6 to 1.8 times faster at 64 rows and more, and one of
64 units up to twice slower (`python -m benchmarks cores`). A short run stays on one thread without a try: where the
processor is busy it would wait for the others longer than it takes. Results are equal bit for bit either way.
"""

from __future__ import annotations

from pathlib import Path

from service.engine.device_runner import DeviceRunner
from service.engine.model_runner import ModelRunner
from service.engine.ticker import INLINE_SECONDS
from service.quota import cpu_quota
from service.settings import Settings

WIDE_ROWS = 64
"""Rows of the run that is looked at."""

PAYS = 0.8
"""Of its time on one thread, what a run may take at most to be worth the others."""


def open_runner(path: Path, settings: Settings) -> ModelRunner:
    """Load the file. Raises what ModelRunner raises."""
    if settings.intra_op_threads:
        return _open(path, settings, settings.intra_op_threads)
    one = _open(path, settings, 1)
    quota = cpu_quota()
    if quota == 1 or settings.provider != "cpu":
        return one
    rows = min(WIDE_ROWS, settings.max_rows, one.spec.max_batch_size or WIDE_ROWS)
    alone = one.measure(rows, 1)
    if alone < INLINE_SECONDS:
        return one
    many = _open(path, settings, quota)
    return many if many.measure(rows, 1) <= PAYS * alone else one


def _open(path: Path, settings: Settings, num_threads: int) -> ModelRunner:
    runner = DeviceRunner if settings.provider != "cpu" and settings.device_states else ModelRunner
    return runner(path, provider=settings.provider, num_threads=num_threads)
