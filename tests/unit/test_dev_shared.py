"""A shared server's users, when its owner has no server for them."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybridkit.dev import SharedServers
from hybridkit.dev._processes._process import own_process
from hybridkit.dev._servers._shared import OwnerReport, write_report
from hybridkit.errors import ServerMissingError, ServerStartError


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedServers]:
    monkeypatch.setattr("hybridkit.dev._servers._shared.state_directory", lambda environment: tmp_path)
    shared = SharedServers(secrets.token_hex(8))
    yield shared
    shared.release()
    shared.close()


@pytest.fixture
def play_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Let a shell script be the owner; what it is called with is -m MODULE KIND FOLDER."""

    def play(script: str) -> Path:
        calls = tmp_path / "calls"
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho "$3" >>{calls}\n{script}\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        return calls

    return play


def test_an_owner_that_dies_shows_what_it_said(
    shared: SharedServers, play_owner: Callable[[str], Path]
) -> None:
    """The error comes at once, with the output of the owner."""
    play_owner("echo no module of that name >&2; exit 1")
    with pytest.raises(ServerStartError, match="has ended:\nno module of that name"):
        shared.get("redis")


def test_a_server_that_did_not_start_is_an_error(
    shared: SharedServers, play_owner: Callable[[str], Path]
) -> None:
    """The error has the owner's message."""
    report = json.dumps({"pid": 1, "started": "1", "error": "redis did not come up", "missing": None})
    play_owner(f"echo '{report}' >\"$4/redis.json\"; sleep 1")
    with pytest.raises(ServerStartError, match="redis did not come up"):
        shared.get("redis")


def test_a_missing_server_is_looked_for_once(
    shared: SharedServers, play_owner: Callable[[str], Path]
) -> None:
    """Later requests get the same error at once."""
    report = json.dumps({"pid": 1, "started": "1", "error": "no redis", "missing": ["URL: set one"]})
    calls = play_owner(f"echo '{report}' >\"$4/redis.json\"; sleep 1")
    for _ in range(3):
        with pytest.raises(ServerMissingError, match="no redis\n  - URL: set one") as caught:
            shared.get("redis")
        assert caught.value.missing == ("URL: set one",)
    assert calls.read_text() == "redis\n"


def test_folders_of_killed_runs_are_removed_after_a_while(
    shared: SharedServers, play_owner: Callable[[str], Path], tmp_path: Path
) -> None:
    """Folders in use and recent ones are kept."""
    play_owner("exit 1")
    an_hour_ago = time.time() - 3601
    for name, age in (("old", an_hour_ago), ("young", time.time()), ("used", an_hour_ago)):
        (tmp_path / "shared" / name).mkdir(parents=True)
        if name == "used":
            me = own_process()
            write_report(tmp_path / "shared/used/redis.json", OwnerReport(pid=me.pid, started=me.started))
        os.utime(tmp_path / "shared" / name, (age, age))
    with pytest.raises(ServerStartError):
        shared.get("redis")
    left = {path.name for path in (tmp_path / "shared").iterdir()}
    assert {"young", "used"} <= left
    assert "old" not in left
