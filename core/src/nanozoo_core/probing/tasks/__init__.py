"""The tasks by name, in the order of the matrix."""

from __future__ import annotations

from nanozoo_core.probing.task import Task
from nanozoo_core.probing.tasks.copying import SelectiveCopying
from nanozoo_core.probing.tasks.parity import Parity

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Parity,
        SelectiveCopying,
    )
}
