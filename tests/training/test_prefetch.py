"""Items made ahead by a thread: in order, with their errors, and never after the end."""

import threading
import time

import pytest

from fedsam_pipeline.training.prefetch import AHEAD, prefetched


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_come_in_order_and_from_one_other_thread() -> None:
    made: list[int] = []
    with prefetched(lambda i: (made.append(i), threading.current_thread().name), 7) as items:  # type: ignore[func-returns-value]
        names = {name for _, name in items}
    assert made == list(range(7)) and len(names) == 1 and names != {threading.current_thread().name}
    assert not prefetchers()


def test_no_more_are_made_than_asked_for() -> None:
    made: list[int] = []
    with prefetched(made.append, 100) as items:
        next(items)
        time.sleep(0.05)
        assert 1 <= len(made) <= AHEAD
    assert len(made) <= AHEAD and not prefetchers()


def test_an_error_is_raised_where_its_item_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError("case_7 cannot be read")
        return number

    found = []
    with pytest.raises(OSError, match="case_7 cannot be read"), prefetched(make, 5) as items:
        for item in items:
            found.append(item)
    assert found == [0, 1] and not prefetchers()


def test_an_error_of_the_user_of_the_items_ends_the_thread_too() -> None:
    with pytest.raises(KeyboardInterrupt), prefetched(lambda i: i, 1000) as items:
        next(items)
        raise KeyboardInterrupt
    assert not prefetchers()
