"""Messages out, answers in as they come."""

import math
import threading
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 0.05


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


def answers(
    grid: Grid, messages: Sequence[Message], timeout: float | None, stop: threading.Event, *, window: int | None = None
) -> Iterator[Message]:
    """Sends messages and yields the answers as they come.

    Args:
        grid: Flower's connection to the sites.
        messages: one a node, in the order in which they are sent.
        timeout: seconds that each answer is waited for, from when its message was sent: one that does not come by then gives its place
            to the next message, and is not taken later. ``None`` waits for all.
        stop: set by another thread to end the run.
        window: messages that are out at once, each until the caller is done with its answer: at most so many answers are in this
            process's memory, however many sites there are and however slow the caller is. ``None``: all.

    Raises:
        RunStopped: ``stop`` was set while sites were computing.
    """
    queue = list(reversed(messages))
    due: dict[str, float] = {}

    def send() -> None:
        room = len(queue) if window is None else min(len(queue), window - len(due))
        if room:
            sent = list(grid.push_messages([queue.pop() for _ in range(room)]))
            due.update(dict.fromkeys(sent, math.inf if timeout is None else time.monotonic() + timeout))

    while due or queue:
        send()
        asked = time.monotonic()  # what came while the caller was at work is not too late: it is lost only if it is not there now
        arrived = list(grid.pull_messages(set(due)))[::-1]
        if not arrived and stop.wait(POLL_SECONDS):
            raise RunStopped("the run was stopped while sites were computing")
        while arrived:
            message = arrived.pop()
            answered = message.metadata.reply_to_message_id
            yield message
            del message  # nothing here holds an answer once the caller is done with it
            due.pop(answered, None)
            send()
        for lost in [message_id for message_id, last in due.items() if last <= asked]:
            del due[lost]
