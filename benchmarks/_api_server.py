"""One side of the served rows of `benchmarks.adapters`, a process of its own: the same route behind a server.

    python -m benchmarks._api_server bare 8080

Bare FastAPI is served by uvicorn with uvloop and httptools, ours by `run_api`, which has the same two beneath. `/cpu`
tells the CPU time of the process so far, in seconds.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from benchmarks._api_side import with_route
from hybridkit.adapters.fastapi import create_app, run_api
from hybridkit.security import OPEN
from hybridkit.settings import ServiceSettings


def main() -> None:
    """Read the command line, and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="benchmarks._api_server", description=__doc__)
    parser.add_argument("side", choices=("bare", "bare_access_log", "ours"))
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for the process's life
    is_ours = arguments.side == "ours"
    app = create_app(ServiceSettings, title="Benchmark", security=OPEN) if is_ours else FastAPI()
    with_route(app)

    @app.get("/cpu")
    async def cpu() -> float:  # pyright: ignore[reportUnusedFunction]
        return time.process_time()

    if is_ours:
        run_api(app)
    else:
        has_log = arguments.side == "bare_access_log"
        uvicorn.run(
            app, port=arguments.port, loop="uvloop", http="httptools", access_log=has_log, log_level="info"
        )


if __name__ == "__main__":
    main()
