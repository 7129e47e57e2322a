"""Which node is which site: by the SuperLink's register, whatever the node says."""

from pathlib import Path

import pytest
from flwr.proto.node_pb2 import NodeInfo

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.named_grid import NamedGrid
from tests.flower.grids import DirectGrid


class Register(DirectGrid):
    def __init__(self, **names: int) -> None:
        super().__init__(())
        self.names = names

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for name, node in self.names.items()]


def test_other_federations_nodes_are_not_seen() -> None:
    grid = NamedGrid(Register(site_a=7, site_b=8, elsewhere=9), ["site_a", "site_b", "site_c"])
    assert [node.node_id for node in grid.get_nodes()] == [7, 8] and grid.site_of == {7: "site_a", 8: "site_b"}
    assert list(grid.get_node_ids()) == []
    grid.ready.add("site_b")
    assert list(grid.get_node_ids()) == [8], "a round asks those that are ready"


def test_a_site_that_comes_late_may_speak(tmp_path: Path) -> None:
    register = Register(site_a=7)
    grid = NamedGrid(register, ["site_a", "site_b"])
    heads = AuditHeads(tmp_path, grid.site_of)
    list(grid.get_nodes())
    assert heads.claim("site_a", 7) and not heads.claim("site_b", 8)
    register.names["site_b"] = 8
    list(grid.get_nodes())
    assert heads.claim("site_b", 8)


@pytest.mark.parametrize(("site", "node"), [("site_b", 7), ("site_a", 8), ("site_a", 9), ("elsewhere", 9)])
def test_nobody_speaks_for_another(tmp_path: Path, site: str, node: int) -> None:
    grid = NamedGrid(Register(site_a=7, site_b=8, elsewhere=9), ["site_a", "site_b"])
    list(grid.get_nodes())
    heads = AuditHeads(tmp_path, grid.site_of)
    assert not heads.claim(site, node)
    assert heads.claim("site_a", 7), "who is who does not depend on who speaks first"
