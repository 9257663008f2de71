"""The registry of tasks: name -> Task. Imports NumPy only; data are read when a split is asked for."""

from __future__ import annotations

from models.tasks import adding, kjv, vowels, weather
from models.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (vowels.TASK, weather.TASK, kjv.TASK, *adding.TASKS)}

FAMILIES: dict[str, tuple[Task, ...]] = {"adding": adding.TASKS}
"""One problem, several cells: the name of the problem -> its tasks."""


def find(name: str) -> tuple[Task, ...]:
    """The task of that name, or the tasks of that family. Raises KeyError, with the names there are."""
    if name in FAMILIES:
        return FAMILIES[name]
    if name not in TASKS:
        raise KeyError(f"no task {name!r}; there are {', '.join([*TASKS, *FAMILIES])}")
    return (TASKS[name],)
