"""Metrics of several workers: each writes its values into files of one directory, and `/metrics` adds them up.

prometheus-client chooses between memory and files when it is imported, by `PROMETHEUS_MULTIPROC_DIR`
(https://prometheus.github.io/client_python/multiprocess/), so this module imports it where it is used. The files of a
worker that has ended stay, as its counts go on counting: they are added up in one file, or a process that has had a
thousand workers would read the files of a thousand at each scrape.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # nosec B108 - of every Linux; the directory in it is made safely
_PREFIX: Final = "hybridkit_metrics_"
_OF_THE_DEAD: Final = 0
"""The process id in the names of the files with the sums of ended workers."""


def share_metrics() -> None:
    """Have the workers that this process will fork write their metrics into files.

    The directory of `PROMETHEUS_MULTIPROC_DIR` is emptied; without the variable one is made, in memory where the system
    has such, and removed when this process ends.
    """
    if VARIABLE not in os.environ:
        in_memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix=_PREFIX, dir=in_memory)
    directory = Path(os.environ[VARIABLE])
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.glob("*.db"):
        file.unlink()
    if directory.name.startswith(_PREFIX):
        atexit.register(_remove, directory, owner=os.getpid())


def _remove(directory: Path, *, owner: int) -> None:
    if os.getpid() == owner:  # and not a worker, which has inherited the call
        shutil.rmtree(directory, ignore_errors=True)


def forget_ended_workers() -> None:
    """Add up the files of the workers that have ended, and drop their gauges."""
    directory = Path(os.environ[VARIABLE])
    with _being_written(directory):
        for file in directory.glob("*.db"):
            kind, _, process = file.stem.rpartition("_")
            if int(process) == _OF_THE_DEAD or _is_alive(int(process)):
                continue
            if kind in ("counter", "histogram"):
                _add(file, to=directory / f"{kind}_{_OF_THE_DEAD}.db")
            file.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _add(file: Path, *, to: Path) -> None:
    from prometheus_client.mmap_dict import MmapedDict  # noqa: PLC0415 - see above

    total = MmapedDict(str(to))  # type: ignore[no-untyped-call] # has no annotations
    try:
        for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            before, _ = total.read_value(key)  # type: ignore[no-untyped-call]
            total.write_value(key, before + value, timestamp)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


@contextmanager
def being_read(directory: Path) -> Generator[None]:
    """Keep the files in place while they are read."""
    yield from _locked(directory, fcntl.LOCK_SH)


@contextmanager
def _being_written(directory: Path) -> Generator[None]:
    """Keep readers away while counts move from one file to another."""
    yield from _locked(directory, fcntl.LOCK_EX)


def _locked(directory: Path, kind: int) -> Generator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
