"""How far off a 72-hour rollout of `weather` is, hour by hour, through a running server: on the test split.

At every sixth hour of each airport's series the sequence has read all hours before, and `generate` goes on from there
without committing. Persistence, that it stays as warm as it is, is measured on the same hours.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.payloads import API_KEY
from benchmarks.servers import running_servers
from models.tasks import weather

HOURS, EVERY_HOURS, DAY = 72, 6, 24
SEQUENCES = "/v1/models/weather/sequences"

Array = NDArray[np.float64]


def measure(repository: Path, core: int = 0) -> dict[str, Any]:
    """Mean absolute errors in °F over all hours ahead, and over each day of them."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model_repository"
        shutil.copytree(repository / "weather", copy / "weather")
        with running_servers(copy, core, ("carousel",)) as servers:
            address = f"http://127.0.0.1:{servers['carousel'].port}"
            with httpx.Client(base_url=address, timeout=60, headers={"X-API-Key": API_KEY}) as client:
                errors = [pair for airport in range(len(weather.AIRPORTS)) for pair in _errors(client, airport)]
    rollout, persistence = (np.stack(part) for part in zip(*errors, strict=True))
    return {
        "forecasts": len(errors),
        "rollout": _summary(rollout),
        "persistence": _summary(persistence),
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{HOURS} hours ahead, {result['forecasts']} forecasts on the test split: MAE in °F")
    for heading in ("", "all hours", "day 1", "day 2", "day 3"):
        table.add_column(heading)
    for name in ("rollout", "persistence"):
        table.add_row(name, f"{result[name]['all']:.2f}", *(f"{day:.2f}" for day in result[name]["days"]))
    console.print(table)


def _errors(client: httpx.Client, airport: int) -> Iterator[tuple[Array, Array]]:
    """Of each forecast: absolute errors `(72,)` of the rollout and of persistence, NaN where nothing was recorded."""
    x, y = (part[airport] for part in (weather.split("test").inputs, weather.split("test").targets))
    sequence = f"{SEQUENCES}/airport-{airport}"
    done = 0
    for now in range(0, len(x) - HOURS, EVERY_HOURS):
        if now > done:
            steps = {"inputs": x[done:now].tolist(), "outputs": "none", "start": done == 0}
            client.post(f"{sequence}/steps", json=steps).raise_for_status()
            done = now
        else:
            client.post(SEQUENCES, json={"sequence_id": f"airport-{airport}"}).raise_for_status()
        ask = {"inputs": [x[now].tolist()], "steps": HOURS, "commit": False, "outputs": "none", "return_state": False}
        answer = client.post(f"{sequence}/generate", json=ask).raise_for_status().json()
        truth = y[now : now + HOURS, 0].astype(np.float64)
        yield np.abs(np.array(answer["values"])[:, 0] - truth), np.abs(float(x[now, 0]) - truth)


def _summary(errors: Array) -> dict[str, Any]:
    by_hour = np.nanmean(errors, axis=0)
    return {"all": float(by_hour.mean()), "days": [float(by_hour[at : at + DAY].mean()) for at in range(0, HOURS, DAY)]}
