"""What the next steps need, made by a thread while this one computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

AHEAD = 3
"""items at a time: the one that is used, one that waits and one that is being made; more only take memory"""

T = TypeVar("T")


@contextmanager
def prefetched(make: Callable[[int], T], count: int, *, ahead: int = AHEAD) -> Iterator[Iterator[T]]:
    """``make(0)`` to ``make(count - 1)`` in order, made one at a time by a single thread, which has ended when the context does.

    What ``make`` raises is raised where its item is asked for. What each item is must not depend on when it is made.

    Args:
        make: gives the item of a number.
        count: how many there are.
        ahead: how many may be made before they are asked for.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    waiting: deque[Future[T]] = deque()

    def items() -> Iterator[T]:
        for number in range(count):
            waiting.extend(thread.submit(make, later) for later in range(number + len(waiting), min(number + ahead, count)))
            yield waiting.popleft().result()

    try:
        yield items()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
