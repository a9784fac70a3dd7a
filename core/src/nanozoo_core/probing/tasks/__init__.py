"""The tasks by name, in the order of the matrix."""

from __future__ import annotations

from nanozoo_core.probing.options import NAMES
from nanozoo_core.probing.task import Task
from nanozoo_core.probing.tasks.bridge import Bridge
from nanozoo_core.probing.tasks.copying import MambaCopying, SelectiveCopying
from nanozoo_core.probing.tasks.fuzzy import FuzzyRecall
from nanozoo_core.probing.tasks.hops import Hops
from nanozoo_core.probing.tasks.induction import Induction
from nanozoo_core.probing.tasks.memorization import Memorization
from nanozoo_core.probing.tasks.mqar import MultiQueryRecall
from nanozoo_core.probing.tasks.needle import Needle
from nanozoo_core.probing.tasks.parity import Parity
from nanozoo_core.probing.tasks.pointer import Pointer
from nanozoo_core.probing.tasks.polynomials import Polynomials
from nanozoo_core.probing.tasks.recall import NoisyRecall, Recall
from nanozoo_core.probing.tasks.restore import Restore
from nanozoo_core.probing.tasks.star import StarGraph
from nanozoo_core.probing.tasks.words import WordProblem

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Parity,
        WordProblem,
        SelectiveCopying,
        MambaCopying,
        Memorization,
        Induction,
        Recall,
        NoisyRecall,
        FuzzyRecall,
        MultiQueryRecall,
        Needle,
        StarGraph,
        Bridge,
        Polynomials,
        Hops,
        Pointer,
        Restore,
    )
}
assert tuple(TASKS) == NAMES
