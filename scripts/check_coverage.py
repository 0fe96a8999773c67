"""Demand that tests reach every line and every branch of the modules that guard data.

Run after `coverage combine`. A pattern that matches no file fails too: a renamed module would drop out unseen.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CRITICAL = [
    "src/hybridkit/adapters/_telegram/_chat_turns.py",
    "src/hybridkit/adapters/_telegram/_files.py",
    "src/hybridkit/adapters/_telegram/_fsm.py",
    "src/hybridkit/adapters/_telegram/_holds.py",
    "src/hybridkit/adapters/_telegram/_sender.py",
    "src/hybridkit/adapters/localization.py",
    "src/hybridkit/adapters/_telegram/_queued_updates.py",
    "src/hybridkit/adapters/_telegram/_running_updates.py",
    "src/hybridkit/adapters/_telegram/_update_queues.py",
    "src/hybridkit/adapters/_telegram/_updates.py",
    "src/hybridkit/adapters/_telegram/_webhook*.py",
    "src/hybridkit/adapters/_http/_cors.py",
    "src/hybridkit/adapters/_http/_deadlines.py",
    "src/hybridkit/adapters/_http/_edge.py",
    "src/hybridkit/adapters/_http/_proxies.py",
    "src/hybridkit/adapters/_http/_web_sessions.py",
    "src/hybridkit/adapters/_security/*.py",
    "src/hybridkit/_tasks.py",
    "src/hybridkit/clients/_transaction*.py",
    "src/hybridkit/clients/_transports/_heads.py",
    "src/hybridkit/clients/_transports/_http1*.py",
    "src/hybridkit/clients/_write_identity.py",
    "src/hybridkit/codec.py",
    "src/hybridkit/context.py",
    "src/hybridkit/coordination/_broadcast.py",
    "src/hybridkit/coordination/_cache/*.py",
    "src/hybridkit/coordination/_lease.py",
    "src/hybridkit/coordination/_local_limiter.py",
    "src/hybridkit/coordination/_lock.py",
    "src/hybridkit/coordination/_process_redis.py",
    "src/hybridkit/coordination/_rate_limiter.py",
    "src/hybridkit/coordination/_rates.py",
    "src/hybridkit/coordination/_redis/*.py",
    "src/hybridkit/coordination/_session*.py",
    "src/hybridkit/clients/_audit/*.py",
    "src/hybridkit/dataservice/_http/_audit/*.py",
    "src/hybridkit/dataservice/_memory/_audit.py",
    "src/hybridkit/dataservice/_mongo/_audit/*.py",
    "src/hybridkit/dataservice/_postgres/_audit/*.py",
    "src/hybridkit/dataservice/_store/_audit.py",
    "src/hybridkit/dataservice/_mongo/_collection.py",
    "src/hybridkit/dataservice/_mongo/_document_events.py",
    "src/hybridkit/dataservice/_mongo/_document_writer.py",
    "src/hybridkit/dataservice/_mongo/_driver/_errors.py",
    "src/hybridkit/dataservice/_mongo/_filters.py",
    "src/hybridkit/dataservice/_mongo/_keys.py",
    "src/hybridkit/dataservice/_mongo/_outbox.py",
    "src/hybridkit/dataservice/_mongo/_paths.py",
    "src/hybridkit/dataservice/_mongo/_store.py",
    "src/hybridkit/dataservice/_mongo/_transaction_writer.py",
    "src/hybridkit/dataservice/_mongo/_values.py",
    "src/hybridkit/dataservice/_mongo/_writer.py",
    "src/hybridkit/dataservice/_open_outbox.py",
    "src/hybridkit/dataservice/_outbox/*.py",
    "src/hybridkit/dataservice/_postgres/_operations.py",
    "src/hybridkit/dataservice/_postgres/_keys.py",
    "src/hybridkit/dataservice/_postgres/_outbox*.py",
    "src/hybridkit/dataservice/_postgres/_reader.py",
    "src/hybridkit/dataservice/_postgres/_store.py",
    "src/hybridkit/dataservice/_postgres/_writer.py",
    "src/hybridkit/dataservice/_store/_decisions.py",
    "src/hybridkit/dataservice/_store/_keys.py",
    "src/hybridkit/dataservice/_store/_kept_outcomes.py",
    "src/hybridkit/events/*.py",
    "src/hybridkit/idempotency/*.py",
    "src/hybridkit/jobs/*.py",
    "src/hybridkit/messaging/**/*.py",
    "src/hybridkit/observability/_ecs.py",
    "src/hybridkit/observability/_output.py",
    "src/hybridkit/observability/_redaction.py",
    "src/hybridkit/observability/_watchdog.py",
    "src/hybridkit/retry.py",
    "src/hybridkit/sagas/_commits.py",
    "src/hybridkit/sagas/_decisions.py",
    "src/hybridkit/sagas/_declaration.py",
    "src/hybridkit/sagas/_drafts.py",
    "src/hybridkit/sagas/_engine.py",
    "src/hybridkit/sagas/_handlers.py",
    "src/hybridkit/sagas/_messages.py",
    "src/hybridkit/sagas/_records.py",
    "src/hybridkit/sagas/_run.py",
    "src/hybridkit/security/*.py",
]


def measured() -> dict[str, Any]:
    """Return what coverage knows about each file, by its path from the repository's root."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "coverage.json")
        command = [sys.executable, "-m", "coverage", "json", "-q", "--fail-under=0", "-o", str(report)]
        subprocess.run(command, cwd=ROOT, check=True)
        files: dict[str, Any] = json.loads(report.read_text())["files"]
    return files


def gaps(files: dict[str, Any]) -> list[str]:
    """One line for each file that is not fully reached, and for each pattern without a file."""
    found: list[str] = []
    for pattern in CRITICAL:
        paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
        if not paths:
            found.append(f"{pattern}: no such file; scripts/check_coverage.py lists it")
        found += [f"{path}: {gap}" for path in paths if (gap := _gap(files.get(path)))]
    return found


def _gap(file: dict[str, Any] | None) -> str | None:
    if file is None:
        return "never imported"
    lines, branches = len(file["missing_lines"]), len(file["missing_branches"])
    return f"{lines} lines and {branches} branches are not reached" if lines or branches else None


if __name__ == "__main__":
    problems = gaps(measured())
    print("\n".join(problems) or "every line and branch is reached")
    sys.exit(bool(problems))
