"""More speed under load: a server that has too much to do lets texts leave sooner, instead of refusing requests.

How much waits, and how long, gives a level between 0, where speeds are those asked for, and 1, where every task with
exits is asked at least at the fastest speed that keeps the floor: the fraction of its quality that the operator does
not give away. In between, `1 - level * (1 - floor)` is kept. Work that is done faster waits less, so that under a
steady load the level settles where as much is done as comes. Knows limits, amounts and the tables of tasks; no
requests.
"""

from __future__ import annotations

from collections.abc import Mapping

from trunkline.project.speed import fastest
from trunkline.serving.limits import Limits
from trunkline.serving.replies import TaskInfo

BEGIN, FULL = 0.125, 0.5
"""The load at which the level begins to rise, and at which it is 1: the share of what the queue holds, in rows or
tokens, or of a request's time that goes by while it waits, whichever is largest."""
SLACK = 0.25
"""How far the level stays above what the load asks for: a load that goes up and down by less does not move it."""


class Adaptive:
    """The level of one server; it stays 0 where `limits.floor` is None."""

    def __init__(self, limits: Limits) -> None:
        self.level = 0.0
        self._limits = limits

    @property
    def spare(self) -> bool:
        """Whether more speed can still be given."""
        return self._limits.floor is not None and self.level < 1

    def observe(self, rows: int, tokens: int, spent: float) -> None:
        """Follow what waits now and the share `spent` of its time of the request that waits the longest by it: up at
        once, down with some slack.
        """
        limits = self._limits
        if limits.floor is None:
            return
        load = max(rows / limits.queue_rows, tokens / limits.queue_tokens, spent)
        due = (load - BEGIN) / (FULL - BEGIN)  # below 0 on an idle server by more than the slack, so that it ends at 0
        self.level = min(max(self.level, due, 0.0), max(due + SLACK, 0.0), 1.0)

    def least(self, tasks: Mapping[str, TaskInfo]) -> dict[str, float]:
        """The speed at which each of these tasks that has exits is asked at least; empty where all is as asked."""
        if not self.level or self._limits.floor is None:
            return {}
        keep = 1 - self.level * (1 - self._limits.floor)
        return {name: fastest(task.speeds, keep) for name, task in tasks.items() if task.speeds}
