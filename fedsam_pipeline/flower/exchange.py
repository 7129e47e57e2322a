"""Messages out, answers in as they come."""

import threading
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 0.1


class RunStopped(RuntimeError):
    """Someone asked the run to stop."""


def wait_for_nodes(grid: Grid, number: int, stop: threading.Event) -> list[int]:
    """The nodes, sorted, once so many are there: they come one by one after the start.

    Raises:
        RunStopped: ``stop`` was set before.
    """
    while len(nodes := sorted(grid.get_node_ids())) < number:
        if stop.wait(POLL_SECONDS):
            raise RunStopped(f"the run was stopped when {len(nodes)} of {number} sites had come")
    return nodes


def answers(grid: Grid, messages: Sequence[Message], timeout: float | None, stop: threading.Event) -> Iterator[Message]:
    """Sends messages and yields the answers as they come.

    Args:
        grid: Flower's connection to the sites.
        messages: one a node.
        timeout: seconds after which no more answers are waited for; ``None`` waits for all.
        stop: set by another thread to end the run.

    Raises:
        RunStopped: ``stop`` was set while sites were computing.
    """
    waiting = set(grid.push_messages(messages))
    deadline = None if timeout is None else time.monotonic() + timeout
    while waiting and (deadline is None or time.monotonic() < deadline):
        for message in grid.pull_messages(waiting):
            waiting.discard(message.metadata.reply_to_message_id)
            yield message
        if waiting and stop.wait(POLL_SECONDS):
            raise RunStopped("the run was stopped while sites were computing")
