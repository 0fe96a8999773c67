"""`python -m hybridkit.dev._servers._shared_owner KIND FOLDER`: own a shared server until its last user has gone."""

import fcntl
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import cast

from hybridkit.dev._processes._process import own_process
from hybridkit.dev._servers._local import LocalServers
from hybridkit.dev._servers._server import Kind
from hybridkit.dev._servers._shared import OwnerReport, write_report
from hybridkit.errors import HybridkitError, ServerMissingError


def own(kind: Kind, folder: Path) -> None:
    """Start the server, report it in FOLDER/KIND.json, and end it when FOLDER/KIND.users has no lock left."""
    path = folder / f"{kind}.json"
    with (folder / f"{kind}.users").open("ab") as users, (folder / f"{kind}.owner").open("ab") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        try:
            with LocalServers() as local:
                write_report(path, _start(kind, local))
                fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            # Before the lock is released: who waits for it must find no report, and start a new owner.
            path.unlink(missing_ok=True)


def _start(kind: Kind, local: LocalServers) -> OwnerReport:
    me = own_process()
    try:
        server = local.start(kind)
    except ServerMissingError as error:
        words = str(error).partition("\n")[0]
        return OwnerReport(pid=me.pid, started=me.started, error=words, missing=error.missing)
    except HybridkitError as error:
        return OwnerReport(pid=me.pid, started=me.started, error=str(error))
    return OwnerReport(
        pid=me.pid,
        started=me.started,
        url=server.url,
        source=server.source,
        is_real=server.is_real,
        management_url=server.management_url,
    )


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    own(cast("Kind", sys.argv[1]), Path(sys.argv[2]))
