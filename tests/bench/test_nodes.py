"""Ray nodes of the bench: what they say about spilling, and that they end."""

import contextlib
import time
from pathlib import Path

import pytest

from tests import starting
from tutelage.bench.nodes import NODES, nodes, spilled_of
from tutelage.errors import WorkspaceError

STORES = """--- Aggregate object store stats across all nodes ---
Plasma memory usage 11 MiB, 3 objects, 9.5% full, 9.5% needed
"""


def test_what_was_spilled_is_read_from_what_ray_says() -> None:
    assert spilled_of(STORES) == 0
    assert spilled_of(f"{STORES}Spilled 270 MiB, 6 objects, avg write throughput 511 MiB/s\n") == 270


def test_silence_is_not_taken_for_no_spill() -> None:
    with pytest.raises(WorkspaceError, match="told nothing about object stores, but: 'no cluster'"):
        spilled_of("no cluster")


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_with_an_address_of_its_own_joins_and_all_end(tmp_path: Path) -> None:
    from tutelage.bench.processes import descendants

    with contextlib.ExitStack() as ending:
        with starting.alone():
            cluster = ending.enter_context(nodes(tmp_path / "logs"))
            cluster.join(NODES[0])
        assert NODES[0] in (tmp_path / "logs" / f"{NODES[0]}.log").read_text()
        assert cluster.working() == set()
        assert cluster.spilled_mib() == 0
        pids = [pid for one in cluster.processes() for pid in descendants(one)]
        assert len(pids) > 4
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() < until, "processes of a node are left"
        time.sleep(0.1)
