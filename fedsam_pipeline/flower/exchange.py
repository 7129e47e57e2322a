"""Messages out, answers in as they come."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedsam_pipeline.flower.replies import SiteFailed

log = logging.getLogger(__name__)
POLL_SECONDS = 0.05
MEANWHILE_SECONDS = 5.0
SAY_SECONDS = 60.0
"""from one line of the log that says what is waited for to the next"""


class RunStopped(RuntimeError):
    """Someone asked the run to stop."""


def wait_for_nodes(
    grid: Grid, number: int, stop: threading.Event, patience: float | None = None, meanwhile: Callable[[], None] = lambda: None
) -> list[int]:
    """The nodes, sorted, once so many are there: they come one by one after the start.

    Args:
        grid: Flower's connection to the sites.
        number: of nodes that are needed.
        stop: set by another thread to end the waiting.
        patience: seconds; ``None`` waits for as long as it takes.
        meanwhile: called first, and every few seconds: may make more nodes ready.

    Raises:
        RunStopped: ``stop`` was set before.
        SiteFailed: they did not come in time.
    """
    started = said = looked = time.monotonic()
    meanwhile()
    while len(nodes := sorted(grid.get_node_ids())) < number:
        now = time.monotonic()
        if patience is not None and now - started >= patience:
            raise SiteFailed(f"{len(nodes)} site(s) connected within {patience:g} s, {number} are needed")
        if now - said >= SAY_SECONDS:
            log.info("%d site(s) connected, %d are needed", len(nodes), number)
            said = now
        if now - looked >= MEANWHILE_SECONDS:
            meanwhile()
            looked = time.monotonic()
        if stop.wait(POLL_SECONDS):
            raise RunStopped(f"the run was stopped when {len(nodes)} of {number} sites had come")
    return nodes


def answers(
    grid: Grid, messages: Sequence[Message], timeout: float | None, stop: threading.Event, *, window: int | None = None
) -> Iterator[tuple[int, Message]]:
    """Sends messages and yields the answers as they come, each with the node that was asked.

    An error of Flower's comes from the SuperLink, whichever node it is about: only who was asked tells that.

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
    asked: dict[str, int] = {}

    def send() -> None:
        room = len(queue) if window is None else min(len(queue), window - len(due))
        if room:
            batch = [queue.pop() for _ in range(room)]
            taken = set(grid.push_messages(batch))  # one that Flower did not take is not answered
            sent = [message.metadata for message in batch if message.metadata.message_id in taken]
            asked.update({metadata.message_id: metadata.dst_node_id for metadata in sent})
            last = math.inf if timeout is None else time.monotonic() + timeout
            due.update({metadata.message_id: last for metadata in sent})

    while due or queue:
        send()
        if not due:
            continue
        looked = time.monotonic()  # what came while the caller was at work is not too late: it is lost only if it is not there now
        arrived = list(grid.pull_messages(set(due)))[::-1]
        if not arrived and stop.wait(POLL_SECONDS):
            raise RunStopped("the run was stopped while sites were computing")
        while arrived:
            message = arrived.pop()
            answered = message.metadata.reply_to_message_id
            if answered in due:
                yield asked[answered], message
            del message  # nothing here holds an answer once the caller is done with it
            due.pop(answered, None)
            send()
        for lost in [message_id for message_id, last in due.items() if last <= looked]:
            del due[lost]
