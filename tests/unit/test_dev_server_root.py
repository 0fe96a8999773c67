"""scripts/servers/build, with fakes for debootstrap, Go and the like."""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridkit.dev._processes._process import find_process, wait_until
from hybridkit.dev._servers._server_root import SERVER_ROOT_LAYOUT

SCRIPT = Path(__file__).parents[2] / "scripts/servers/build"
Build = Callable[..., "subprocess.CompletedProcess[str]"]

PLAYED = {
    "uname": "echo Linux",
    "id": "echo 0",
    "docker": "exit 1",
    "umount": "exit 1",
    # Past its own options, which end before the command.
    "unshare": 'while [ "${1#--}" != "$1" ] || [ "$1" = private ]; do shift; done; exec "$@"',
    "chroot": 'shift; exec "$@"',
    "dpkg-query": "echo 5:18.6-2+b1",
    "go": 'if [ "$1" = env ]; then echo go1.26.8; else while [ "$1" != -o ]; do shift; done; echo ferretdb >"$2"; fi',
    "debootstrap": """
        while [ $# -gt 2 ]; do shift; done
        echo "$1 $2" >>"$PLAYED/calls"
        if [ -e "$PLAYED/hang" ]; then echo $$ >"$PLAYED/hangs"; exec sleep 1000; fi
        if [ -e "$PLAYED/fail" ]; then echo "E: no space left"; exit 1; fi
        mkdir -p "$2/usr/local/bin" "$2/etc"
    """,
}


@pytest.fixture
def played(tmp_path: Path) -> Path:
    folder = tmp_path / "played"
    (folder / "bin").mkdir(parents=True)
    for name, script in PLAYED.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "debootstrap/scripts").mkdir(parents=True)
    for suite in ("sid", "bookworm"):
        (folder / "debootstrap/scripts" / suite).touch()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "servers"


@pytest.fixture
def environment(played: Path, root: Path) -> dict[str, str]:
    return {
        "PATH": f"{played / 'bin'}:{os.environ['PATH']}",
        "PLAYED": str(played),
        "DEBOOTSTRAP_DIR": str(played / "debootstrap"),
        "HYBRIDKIT_SERVER_ROOT": str(root),
    }


@pytest.fixture
def build(environment: dict[str, str]) -> Build:
    def build(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in {**environment, **more}.items() if value}
        return subprocess.run(
            [SCRIPT, *arguments], env=variables, capture_output=True, text=True, check=False, timeout=60
        )

    return build


def finish(root: Path, *, layout: int = SERVER_ROOT_LAYOUT) -> None:
    (root / "root").mkdir(parents=True)
    (root / "stamp.json").write_text(json.dumps({"layout": layout, "versions": {}}))


def test_it_builds_what_python_then_finds(build: Build, root: Path) -> None:
    """The stamp has the layout that this version of hybridkit reads, and the versions."""
    done = build()
    assert done.returncode == 0, done.stderr
    stamp = json.loads((root / "stamp.json").read_text())
    assert stamp["layout"] == SERVER_ROOT_LAYOUT
    assert stamp["versions"]["postgres"] == "18.6"
    assert (root / "root/usr/local/bin/ferretdb").read_text() == "ferretdb\n"
    assert sorted(path.name for path in root.iterdir()) == [".lock", "build.log", "root", "stamp.json"]


def test_a_root_with_an_old_rabbitmq(build: Build, played: Path, root: Path) -> None:
    """The Debian 12 root has RabbitMQ 3.10 and nothing of the other root."""
    done = build("rabbitmq_3_10")
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "stamp.json").read_text())["versions"].keys() == {
        "rabbitmq-server",
        "redis-server",
    }
    assert (played / "calls").read_text().startswith("bookworm ")
    assert sorted(path.name for path in root.iterdir()) == [".lock", "build.log", "root", "stamp.json"]


def test_an_unknown_root_is_named(build: Build, root: Path) -> None:
    """The exit code is 2, and nothing is created."""
    done = build("rabbitmq_2")
    assert done.returncode == 2
    assert "no root 'rabbitmq_2'" in done.stderr
    assert not root.exists()


def test_a_second_call_does_nothing(build: Build, played: Path) -> None:
    """It says so, and needs neither root nor a network."""
    build()
    done = build(PATH=os.environ["PATH"])
    assert done.returncode == 0
    assert "already built" in done.stdout
    assert len((played / "calls").read_text().splitlines()) == 1


def test_a_tree_of_another_layout_is_built_again(build: Build, root: Path) -> None:
    """That is the case after an update of hybridkit with a new layout."""
    finish(root, layout=SERVER_ROOT_LAYOUT + 1)
    assert build().returncode == 0
    assert json.loads((root / "stamp.json").read_text())["layout"] == SERVER_ROOT_LAYOUT


def test_a_step_that_fails_shows_what_it_said(build: Build, played: Path, root: Path) -> None:
    """The tree is not finished then, and the next call succeeds."""
    (played / "fail").touch()
    done = build()
    assert done.returncode == 1
    assert "building the tree failed" in done.stderr
    assert "E: no space left" in done.stderr
    assert not (root / "stamp.json").exists()
    (played / "fail").unlink()
    assert build().returncode == 0


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_call_ends_what_it_started(
    build: Build, played: Path, environment: dict[str, str], signal_number: int
) -> None:
    """The next call begins that step again."""
    (played / "hang").touch()
    with subprocess.Popen([SCRIPT], env=environment, stdout=subprocess.DEVNULL) as call:
        assert wait_until((played / "hangs").exists, timeout_seconds=20)
        assert wait_until((played / "hangs").read_text, timeout_seconds=20)
        debootstrap = find_process(int((played / "hangs").read_text()))
        assert debootstrap is not None
        call.send_signal(signal_number)
        assert call.wait(20) == 128 + signal_number
    assert wait_until(lambda: not debootstrap.is_alive(), timeout_seconds=10)
    (played / "hang").unlink()
    assert build().returncode == 0


def test_what_a_killed_call_has_left_running_keeps_the_next_one_waiting(
    build: Build, played: Path, root: Path, environment: dict[str, str]
) -> None:
    """The child has its parent's lock, as two builds must not write to one tree."""
    (played / "hang").touch()
    with subprocess.Popen([SCRIPT], env=environment, stdout=subprocess.DEVNULL) as call:
        assert wait_until((played / "hangs").exists, timeout_seconds=20)
        assert wait_until((played / "hangs").read_text, timeout_seconds=20)
        call.kill()
    with (root / ".lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (played / "hang").unlink()
    os.kill(int((played / "hangs").read_text()), signal.SIGKILL)
    assert build().returncode == 0


def test_a_call_that_waited_for_another_uses_its_work(root: Path, environment: dict[str, str]) -> None:
    """Two calls at once build once."""
    root.mkdir()
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([SCRIPT], env=environment, stdout=subprocess.PIPE, text=True) as call:
            assert call.stdout is not None
            assert "another call is building" in call.stdout.readline()
            finish(root)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert "built by the other call" in call.stdout.read()
            assert call.wait(20) == 0


@pytest.mark.parametrize(
    ("name", "script", "says"),
    [
        ("uname", "echo Darwin", "needs Linux"),
        ("id", "echo 1000", "needs root"),
        ("unshare", "exit 1", "may not mount"),
    ],
)
def test_what_it_can_not_do_it_says_in_one_line(
    build: Build, played: Path, name: str, script: str, says: str
) -> None:
    """Another system, another user, and a container without mounts are errors."""
    (played / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    done = build()
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (played / "calls").exists()


def test_where_a_container_engine_answers_nothing_is_built(
    build: Build, played: Path, tmp_path: Path
) -> None:
    """With HYBRIDKIT_SERVER_ROOT set, it is built all the same."""
    (played / "bin/docker").write_text("#!/bin/sh\nexit 0\n")
    done = build(HYBRIDKIT_SERVER_ROOT="", HOME=str(tmp_path))
    assert done.returncode == 0
    assert "nothing to build" in done.stdout
    assert build().returncode == 0
    assert (played / "calls").exists()
