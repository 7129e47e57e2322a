"""When the sites of a run began to work, and how long their own work took."""

import heapq
from collections.abc import Iterable


class WorkClock:
    """What the sites of one run say of their work, by exchange. Clocks of two machines are never compared: a site tells durations.

    A site's own work is what it would do without a federation: optimizer steps, scoring, judging postprocessing. What comes on top of it
    (reading and writing state, coding, messages, aggregation, checkpoints) is the federation's.

    What a site says is believed as far as it can be: it has not worked for longer than its exchange has lasted by this machine's clock.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._since = 0.0
        self._exchanges: list[list[float]] = []

    @property
    def began(self) -> float | None:
        """When the first site, with its model built, began to work, on the clock of ``time.perf_counter``; ``None``: nothing was told."""
        return self._began

    @property
    def site_seconds(self) -> float:
        """All sites' own work, added up."""
        return sum(map(sum, self._exchanges))

    def next_exchange(self, *, now: float) -> None:
        """A new exchange begins, by ``time.perf_counter``: its sites work at the same time, and after those of the last one."""
        self._since = now
        self._exchanges.append([])

    def answered(self, *, now: float, busy: float, own: float) -> None:
        """One site has answered.

        Args:
            now: when, by ``time.perf_counter``.
            busy: seconds that it says it spent on the message once its model was there; at most those since the exchange began count.
            own: of them, on its own work.
        """
        spent = min(max(0.0, busy), now - self._since)
        began = now - spent
        self._began = began if self._began is None else min(self._began, began)
        self._exchanges[-1].append(min(max(0.0, own), spent))

    def alone(self, seconds: float, *, now: float) -> None:
        """Work that the server timed itself, as if one site had done it: of a site that is no node, or of answers that must not tell."""
        self.next_exchange(now=now - seconds)
        self.answered(now=now, busy=seconds, own=seconds)

    def schedule_seconds(self, workers: int) -> float:
        """What the sites' own work takes where ``workers`` of them compute at once and nothing else costs anything."""
        return sum(longest_first(exchange, workers) for exchange in self._exchanges)


def longest_first(jobs: Iterable[float], workers: int) -> float:
    """When the last of some jobs is done, seconds, if the longest start first, each at the worker that is free first.

    At most 4/3 - 1/(3 ``workers``) of the best schedule (Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 1969).
    """
    free = [0.0] * workers
    for job in sorted(jobs, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)
