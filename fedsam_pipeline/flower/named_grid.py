"""Flower's grid with only some of its nodes: those that are a federation's sites, or those that take part in a round."""

from collections.abc import Collection, Iterable

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class SomeNodes(Grid):
    """A grid with a fixed set of nodes, whoever comes and goes meanwhile: Flower's strategies ask twice who is there.

    Args:
        grid: what sends and receives.
        nodes: the numbers.
    """

    def __init__(self, grid: Grid, nodes: Collection[int] = ()) -> None:
        self._grid, self._nodes = grid, tuple(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """The fixed ones."""
        return self._nodes

    def get_nodes(self) -> Iterable[NodeInfo]:
        """As Flower's, of these nodes."""
        return [node for node in self._grid.get_nodes() if node.node_id in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As Flower's."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As Flower's."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As Flower's."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def set_run(self, run: Run) -> None:
        """As Flower's."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As Flower's."""
        return self._grid.run

    def create_message(self, *arguments: object, **named: object) -> Message:
        """As Flower's, which deprecates it."""
        return self._grid.create_message(*arguments, **named)  # type: ignore[arg-type]


class NamedGrid(SomeNodes):
    """A grid that knows which node is which site: by the name that the SuperLink registered with the node's public key.

    Nodes with other names are not seen, and what a node says of its own name can be held against ``site_of``.

    Args:
        grid: Flower's.
        sites: names of the sites.

    Attributes:
        site_of: node to site, of all nodes that were seen so far.
        ready: sites that can take part in a round.
    """

    def __init__(self, grid: Grid, sites: Collection[str]) -> None:
        super().__init__(grid)
        self._sites = frozenset(sites)
        self.site_of: dict[int, str] = {}
        self.ready: set[str] = set()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The sites that are connected now."""
        found = [node for node in self._grid.get_nodes() if node.name in self._sites]
        self.site_of.update({node.node_id: node.name for node in found})
        return found

    def get_node_ids(self) -> Iterable[int]:
        """Those of them that are ready."""
        return [node.node_id for node in self.get_nodes() if node.name in self.ready]
