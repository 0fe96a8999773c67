"""The children of a run: killed and frozen with their descendants, and found after their owner's death."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybridkit.dev._processes._process import (
    Owner,
    Process,
    ProcessId,
    descendants,
    find_process,
    own_process,
    recorded_processes,
    wait_until,
)
from hybridkit.dev._processes._runs import Run, clean_up
from hybridkit.errors import ServerStartError

# A server with one session, each in a process group of its own, as PostgreSQL has them.
PARENT_AND_CHILD = "setsid sleep 1000 & echo ready; wait"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run


@pytest.fixture
def spawn(run: Run) -> Callable[..., Process]:
    folder = run.folder("server", owner=Owner())

    def spawn(script: str, *, stop_signal: int = signal.SIGTERM) -> Process:
        process = run.spawn(
            ["sh", "-c", script], name="sh", folder=folder, env=os.environ, stop_signal=stop_signal
        )
        assert wait_until(lambda: "ready" in process.log_tail(), timeout_seconds=10)
        return process

    return spawn


def state_of(process: ProcessId) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_stopped(process: ProcessId) -> bool:
    return state_of(process) == "T"


def test_kill_reaches_children_in_other_process_groups(spawn: Callable[..., Process]) -> None:
    """A child in a session of its own is killed as well."""
    process = spawn(PARENT_AND_CHILD)
    tree = process.tree()
    assert len(tree) == 2
    process.kill()
    assert not any(member.is_alive() for member in tree)
    assert not process.is_running


def test_freeze_and_resume_reach_children(spawn: Callable[..., Process]) -> None:
    """All processes stop and continue, and a frozen one still counts as running."""
    process = spawn(PARENT_AND_CHILD)
    process.freeze()
    assert wait_until(lambda: all(map(is_stopped, process.tree())), timeout_seconds=5)
    assert process.is_running
    process.resume()
    assert wait_until(lambda: not any(map(is_stopped, process.tree())), timeout_seconds=5)


def test_a_frozen_child_of_a_killed_parent_is_killed_too(spawn: Callable[..., Process]) -> None:
    """The record written by the freeze is the only way to find it."""
    process = spawn(PARENT_AND_CHILD)
    parent, child = process.tree()
    process.freeze()
    parent.send(signal.SIGKILL)
    assert wait_until(lambda: not parent.is_alive(), timeout_seconds=5)
    process.kill()
    assert not child.is_alive()


def test_stop_lets_the_process_finish(spawn: Callable[..., Process]) -> None:
    """It gets its stop signal and time to act on it, also when it was frozen."""
    process = spawn(
        "trap 'echo finished; exit 0' INT; echo ready; while :; do sleep 0.01; done",
        stop_signal=signal.SIGINT,
    )
    process.freeze()
    process.stop()
    assert "finished" in process.log_tail()


def test_each_child_notes_who_it_is_before_it_becomes_the_server(
    run: Run, spawn: Callable[..., Process]
) -> None:
    """The record has pid and start time of the running process."""
    process = spawn("echo ready; sleep 1000")
    (record,) = (run.directory / "processes").iterdir()
    assert recorded_processes(record.read_text()) == [find_process(process.pid)]


def test_a_reused_pid_is_another_process() -> None:
    """A pid with another start time gets no signal."""
    me = own_process()
    stranger = ProcessId(me.pid, "1")
    assert (me.is_alive(), stranger.is_alive()) == (True, False)
    stranger.send(signal.SIGKILL)


def test_descendants_of_the_dead_are_nobody() -> None:
    """A process that has ended has no tree."""
    assert descendants([ProcessId(own_process().pid, "1")]) == []


def test_closing_a_run_leaves_nothing(tmp_path: Path) -> None:
    """Neither processes nor files are left, and nothing can be started any more."""
    run = Run(tmp_path)
    folder = run.folder("server", owner=Owner())
    process = run.spawn(["sleep", "1000"], name="sleep", folder=folder, env=os.environ)
    run.close()
    assert not process.is_running
    assert not run.directory.exists()
    with pytest.raises(ServerStartError, match="has been closed"):
        run.spawn(["sleep", "1000"], name="sleep", folder=folder, env=os.environ)


def test_a_tool_that_fails_shows_what_it_said(run: Run) -> None:
    """The error has the exit code and the end of the output."""
    folder = run.folder("tool", owner=Owner())
    with pytest.raises(ServerStartError, match="ended with 3:\nno space left"):
        run.check_call(
            ["sh", "-c", "echo no space left; exit 3"], name="initdb", folder=folder, env=os.environ
        )


def abandon_a_server(state: Path) -> ProcessId:
    """Let another process own a server, and die as after kill -9."""
    script = f"""
        import os
        from pathlib import Path
        from hybridkit.dev._processes._process import Owner, find_process, wait_until
        from hybridkit.dev._processes._runs import Run
        run = Run(Path({str(state)!r}))
        folder = run.folder("server", owner=Owner())
        argv = ["sh", "-c", "echo ready; exec sleep 1000"]
        process = run.spawn(argv, name="sleep", folder=folder, env=os.environ)
        wait_until(process.log_tail, timeout_seconds=10)
        found = find_process(process.pid)
        print(found.pid, found.started, flush=True)
        os._exit(9)
    """
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    pid, started = said.stdout.split()
    return ProcessId(int(pid), started)


def test_the_next_run_kills_what_a_dead_owner_left(tmp_path: Path) -> None:
    """Exactly the recorded processes are killed, and the folder is removed."""
    orphan = abandon_a_server(tmp_path)
    assert orphan.is_alive()
    with Run(tmp_path) as run:
        assert not orphan.is_alive()
        assert [path for path in run.directory.parent.iterdir() if path.is_dir()] == [run.directory]


def test_a_run_whose_owner_lives_is_left_alone(
    run: Run, spawn: Callable[..., Process], tmp_path: Path
) -> None:
    """Several owners can share the state directory."""
    process = spawn("echo ready; sleep 1000")
    assert clean_up(tmp_path) == []
    assert process.is_running
    assert run.directory.exists()


def test_pids_of_another_boot_are_not_killed(tmp_path: Path) -> None:
    """After a reboot pid and start time may be another process's; only the folder goes."""
    innocent = abandon_a_server(tmp_path)
    try:
        (owner,) = tmp_path.glob("runs/*/owner.json")
        owner.write_text(owner.read_text().replace('"boot": "', '"boot": "another-'))
        assert clean_up(tmp_path) == [owner.parent]
        assert innocent.is_alive()
    finally:
        innocent.send(signal.SIGKILL)


def test_ps_knows_the_same_processes_as_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, `ps` gives the same tree."""
    import hybridkit.dev._processes._process as module

    with subprocess.Popen(["sleep", "1000"]) as child:
        monkeypatch.setattr(module, "LINUX", False)
        me = own_process()
        assert me.is_alive()
        assert child.pid in [process.pid for process in descendants([me])]
        child.kill()
