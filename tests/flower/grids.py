"""A grid within this process: real ClientApps, real messages, no Ray."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsam_pipeline.flower.client_app import make_client_app


def stamped_id(message: Message) -> str:
    """Gives a message the one id of its node, as Flower's grids give ids."""
    message.metadata.__dict__["_message_id"] = name = f"m{message.metadata.dst_node_id}"
    return name


class DirectGrid(Grid):
    """Node ``i`` is the ``i``-th setup. Keeps what crossed in ``sent`` and ``received``."""

    def __init__(
        self, setups: Iterable[Any], make_app: Callable[[Callable[[Context, RecordDict], Any]], ClientApp] = make_client_app
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # Flower stamps messages with them
        self._setups = list(setups)
        self._app = make_app(lambda context, _content: self._setups[int(context.node_config["partition-id"])])
        self._replies: list[Message] = []
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self._setups) + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)[::-1]  # answers come in any order
        ids = [stamped_id(message) for message in asked]
        self._replies = [reply for reply in self._replies if reply.metadata.reply_to_message_id not in ids]
        for message in asked:
            node = message.metadata.dst_node_id
            context = Context(run_id=1, node_id=node, node_config={"partition-id": node - 1}, state=RecordDict(), run_config={})
            kind, lasts = message.metadata.message_type, message.metadata.ttl
            stamped = Message(message.content, dst_node_id=node, message_type=kind, ttl=lasts)
            stamped.metadata.__dict__["_message_id"] = f"m{node}"
            reply = self._app(stamped, context)
            self.sent.append(stamped)
            self.received.append(reply)
            self._replies.append(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for reply in self._replies if reply.metadata.reply_to_message_id in set(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("not used")

    def set_run(self, run: object) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Run:
        raise AssertionError("not used")

    def create_message(self, *arguments: object, **named: object) -> Message:
        raise AssertionError("not used")

    def get_nodes(self) -> Iterable[NodeInfo]:
        raise AssertionError("not used")
