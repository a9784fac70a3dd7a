"""When a trial may end early: a bar for each check, known before the trial begins.

A bar is the median score of earlier trials at the same share of the budget, raised by a slack: on
the plateau of the schedule a high rate looks worse than it will be once the rate has fallen. No
check falls into a warm-up or a decay, where scores tell phases apart and not recipes. Since a bar
depends on earlier batches of trials alone, no verdict depends on which process was faster.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GRID = 8  # reports of a run, at equal shares of its budget
FIRST_SHARE = 0.25  # of the budget, before which nothing is checked
SLACK = 0.02  # of the median score
FEWEST_REPORTS = 3  # for a median
MOST_PRUNED = 0.5  # of the trials of a study


@dataclass(frozen=True)
class Reports:
    """What one earlier trial reported: bits per byte by the number of the report, from 1 to 8."""

    at: Mapping[int, float]
    was_pruned: bool


def checks(*, longest_warmup: float, longest_decay: float) -> range:
    """The reports after which a trial may end; none where warm-up and decay leave no room.

    Args: both: shares of a run, the largest that the search tries.
    """
    first = max(math.ceil(FIRST_SHARE * GRID), math.ceil(2 * longest_warmup * GRID - 1e-9))
    last = math.floor((1 - longest_decay) * GRID + 1e-9)
    return range(max(1, first), min(last, GRID - 1) + 1)


def bars(
    earlier: Sequence[Reports], allowed: range, *, trials: int, at_once: int
) -> dict[int, float]:
    """The worst score with which a trial goes on, by the number of the report.

    Pruned trials count up to where they went: without them the bar would fall with every one.

    Args:
        earlier: the trials of earlier batches that reported anything.
        allowed: the reports after which a trial may end.
        trials: of the whole search. at_once: of this batch, all of which might be pruned.
    """
    pruned = sum(reports.was_pruned for reports in earlier)
    if pruned + at_once > MOST_PRUNED * trials:
        return {}
    found = {}
    for number in allowed:
        seen = [reports.at[number] for reports in earlier if number in reports.at]
        if len(seen) >= FEWEST_REPORTS:
            found[number] = statistics.median(seen) * (1 + SLACK)
    return found
