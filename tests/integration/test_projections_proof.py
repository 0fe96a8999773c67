"""The short form of the proof of projections (`tests/proofs/projections.py`, part of `make streams`)."""

from pathlib import Path

import pytest

from hybridkit.dev._servers._probes import free_port
from tests.proofs.projections import prove

pytestmark = pytest.mark.real_server


@pytest.mark.usefixtures("unmeasured_test")
async def test_each_event_counts_once_while_processes_are_killed(postgres_url: str, tmp_path: Path) -> None:
    """Both versions are the fold of the log after kills and freezes of the data service and two projectors."""
    outcome = await prove(postgres_url, free_port(), tmp_path, seed=4, kills=2)
    assert (outcome.faults.total(), outcome.events > 0) == (2, True)
