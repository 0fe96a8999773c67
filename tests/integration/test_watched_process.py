"""A real process whose loop is blocked, and whose output nobody reads: it tells, goes on, and loses no line."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from hybridkit.dev import free_port
from tests.helpers import until
from tests.helpers.ecs import refusals

PROGRAM = """
import re
import time

from hybridkit.adapters.fastapi import create_app, run_api
from hybridkit.settings import ServiceSettings

app = create_app(ServiceSettings, title="Watched")


@app.get("/numbers/{number}")
async def number(number: int) -> None: ...


@app.get("/block")
async def block() -> None:
    time.sleep(1)


@app.get("/explode")
async def explode() -> None:
    re.match(r"(a+)+$", "a" * 25 + "b")


run_api(app)
"""
REQUESTS = 400


@pytest.mark.timeout(240)
async def test_a_process_tells_what_blocks_it_and_loses_no_line(tmp_path: Path) -> None:
    """By its log, by faulthandler and by a metric; its log is read only after its end, and is whole and in order."""
    port, management_port = free_port(), free_port()
    errors = (tmp_path / "stderr").open("w+")
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        env={
            **os.environ,
            "ENVIRONMENT": "test",
            "SERVICE_NAME": "watched_api",
            "PORT": str(port),
            "MANAGEMENT_PORT": str(management_port),
            "LOOP_STALL_SECONDS": "0.2",
        },
        stdout=writing,
        stderr=errors,
    )
    os.close(writing)
    try:
        management = f"http://127.0.0.1:{management_port}"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as api:
            await until(lambda: is_ready(api, f"{management}/ready"))
            for number in range(REQUESTS):  # far more lines than a pipe holds
                assert (await api.get(f"/numbers/{number}")).status_code == 200
            assert (await api.get("/block")).status_code == 200
            assert (await api.get("/explode")).status_code == 200
            page = (await api.get(f"{management}/metrics")).text
        process.send_signal(signal.SIGTERM)
        with os.fdopen(reading) as output:
            text = await asyncio.to_thread(output.read)
        assert await process.wait() == 0
        lines = [json.loads(line) for line in text.splitlines()]
        assert [refusal for line in lines for refusal in refusals(line)] == []
        paths = [line["url.path"] for line in lines if line.get("url.path", "").startswith("/numbers/")]
        assert paths == [f"/numbers/{number}" for number in range(REQUESTS)]
        blocked = [line["labels"]["line"] for line in lines if line["message"] == "the event loop is blocked"]
        assert any("in block" in line for line in blocked)
        [stalls] = [
            line for line in page.splitlines() if line.startswith("hybridkit_event_loop_stalls_total ")
        ]
        assert float(stalls.split()[1]) >= 2
        errors.seek(0)
        assert "in explode" in errors.read()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors.close()


async def is_ready(api: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await api.get(url)).status_code == 200
    except httpx.TransportError:
        return False
