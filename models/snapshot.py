"""All that `--resume` needs, in one safetensors file without pickle: weights, optimizer, random state, counters.

One file, written beside and renamed, so a kill at any moment leaves the old snapshot or the new one, whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "snapshot.safetensors"


@dataclass
class Progress:
    """Where a training run stands; every field is a JSON value."""

    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches of the present epoch that are done."""
    step: int = 0
    """Updates made."""
    loss_sum: float = 0.0
    """Over the present epoch's batches so far."""
    best_metric: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    """Time spent training, all sessions together."""
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    """A row an epoch: train_loss, valid_metric, learning_rate."""


def write(
    folder: Path,
    identity: dict[str, Any],
    progress: Progress,
    model: dict[str, Tensor],
    optimizer: dict[str, Any],
    state: tuple[Tensor, ...],
    best: dict[str, Tensor],
) -> None:
    """`identity` is what must be the same for a resumed run; `state` is what truncated back-propagation carries."""
    tensors = {f"model.{name}": tensor for name, tensor in model.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    tensors |= {f"state.{place}": tensor for place, tensor in enumerate(state)}
    tensors["random"] = torch.get_rng_state()
    for parameter, slots in optimizer["state"].items():
        tensors |= {f"optimizer.{parameter}.{name}": tensor for name, tensor in slots.items()}
    owned = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (FILE + ".part")
    # JSON writes a float's shortest exact form, so counters come back bit for bit.
    save_file(owned, part, {"identity": json.dumps(identity), "progress": json.dumps(asdict(progress))})
    os.replace(part, folder / FILE)


@dataclass
class Snapshot:
    """What `write` was given."""

    identity: dict[str, Any]
    progress: Progress
    model: dict[str, Tensor]
    optimizer_slots: dict[int, dict[str, Tensor]]
    state: tuple[Tensor, ...]
    best: dict[str, Tensor]
    random: Tensor


def read(folder: Path) -> Snapshot:
    """Raises FileNotFoundError when there is none."""
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"no {FILE} in {folder}: nothing to resume; train without --resume first")
    with safe_open(folder / FILE, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer.").items():
        parameter, slot = name.split(".", 1)
        slots.setdefault(int(parameter), {})[slot] = tensor
    state = _under(tensors, "state.")
    return Snapshot(
        identity=json.loads(metadata["identity"]),
        progress=Progress(**json.loads(metadata["progress"])),
        model=_under(tensors, "model."),
        optimizer_slots=slots,
        state=tuple(state[str(place)] for place in range(len(state))),
        best=_under(tensors, "best."),
        random=tensors["random"],
    )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
