"""Metrics of several workers: a directory of files, of which those of ended workers are added up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from hybridkit._worker_metrics import VARIABLE, forget_ended_workers, share_metrics


def ended_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(directory: Path, name: str, **values: float) -> None:
    file = MmapedDict(str(directory / name))  # type: ignore[no-untyped-call]
    for key, value in values.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call] # has no annotations
    file.close()  # type: ignore[no-untyped-call]


def read(directory: Path, name: str) -> dict[str, float]:
    found = MmapedDict.read_all_values_from_file(str(directory / name))  # type: ignore[no-untyped-call]
    return {key: value for key, value, _, _ in found}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def test_counts_of_ended_workers_are_added_up_and_their_gauges_dropped(directory: Path) -> None:
    """However many workers there have been, they have one file of each kind; a living one keeps its own."""
    own = os.getpid()
    write(directory, f"counter_{own}.db", a=1)
    for _ in range(3):
        ended = ended_process()
        write(directory, f"counter_{ended}.db", a=1, b=2)
        write(directory, f"histogram_{ended}.db", h=0.5)
        write(directory, f"gauge_livesum_{ended}.db", g=7)
        forget_ended_workers()
    assert {file.name for file in directory.glob("*.db")} == {
        f"counter_{own}.db",
        "counter_0.db",
        "histogram_0.db",
    }
    assert read(directory, "counter_0.db") == {"a": 3, "b": 6}
    assert read(directory, "histogram_0.db") == {"h": 1.5}


def test_a_new_start_begins_with_an_empty_directory(directory: Path) -> None:
    """Counts of the last start would be added to those of this one, as their files have its workers' ids at worst."""
    write(directory, "counter_1.db", a=1)
    (directory / "not_ours.txt").touch()
    share_metrics()
    assert [file.name for file in directory.iterdir()] == ["not_ours.txt"]


def test_a_directory_of_our_own_is_removed_at_the_end() -> None:
    """Without the variable one is made; a forked worker that ends leaves it in place."""
    program = (
        "import os; from hybridkit._worker_metrics import VARIABLE, share_metrics; share_metrics();"
        "print(os.environ[VARIABLE], flush=True);"
        "child = os.fork();"
        "child and (os.waitpid(child, 0), print(os.path.isdir(os.environ[VARIABLE])))"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    path, was_there = printed.stdout.split()
    assert was_there == "True"
    assert not Path(path).exists()


def test_a_process_of_another_user_counts_as_living(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is in use, though no signal may be sent to it."""

    def refuse(process: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    write(directory, "counter_1.db", a=1)
    forget_ended_workers()
    assert (directory / "counter_1.db").exists()
