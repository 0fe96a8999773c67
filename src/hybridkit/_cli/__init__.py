"""The command `hybridkit`, for people and for CI: what an application has at its broker and in its databases.

```
hybridkit topology plan --app worker_service.main --url amqp://127.0.0.1:5672/
```

Exit codes: 0 for success, 1 when something differs or failed, 2 when the command was used wrongly, 130 after Ctrl-C.
With `--json` a command prints one JSON document on standard output and nothing else. An error is one line on standard
error.
"""

import sys
from typing import Final

from hybridkit.errors import MissingExtraError

__all__ = ["main"]

# A group of commands is a module with a `typer.Typer` named `app`; it is imported when one of its commands is used.
GROUPS: Final = {
    "dlq": (
        "hybridkit._cli._dead_letters",
        "Count, show and send back dead letters.",
    ),
    "events": (
        "hybridkit._cli._events",
        "Export the schemas of events and commands, and check them against a release.",
    ),
    "jobs": (
        "hybridkit._cli._jobs",
        "Show when jobs have run and will run, and have one run now.",
    ),
    "outbox": (
        "hybridkit._cli._outbox",
        "List what a data service has not published, and have it tried again.",
    ),
    "projections": (
        "hybridkit._cli._projections",
        "Show where projections stand, let one go on, and fill a version.",
    ),
    "sagas": (
        "hybridkit._cli._sagas",
        "Show sagas, have them retry, fail or skip, and check that code can serve them.",
    ),
    "streams": (
        "hybridkit._cli._streams",
        "Let readers of streams go on after a restore.",
    ),
    "topology": (
        "hybridkit._cli._topology",
        "Plan, apply and verify what consumers need of the broker.",
    ),
}

# A command of its own is a `typer.Typer` with one command in a module, imported in the same way.
COMMANDS: Final = {
    "audit": (
        "hybridkit._cli._audit:app",
        "Show who changed what, by the audit trail of a data service.",
    ),
    "dev": (
        "hybridkit._cli._dev._command:app",
        "Run all processes of a project while it is developed.",
    ),
    "doctor": (
        "hybridkit._cli._doctor:app",
        "Check a service's settings and surroundings.",
    ),
    "forget": (
        "hybridkit._cli._forget:app",
        "Erase the personal data of one person in a data service.",
    ),
    "migrate": (
        "hybridkit._cli._migrations:migrate_app",
        "Bring a database to what a data service declares.",
    ),
    "revision": (
        "hybridkit._cli._migrations:revision_app",
        "Write the Alembic revision to the declared tables.",
    ),
}


def main() -> None:
    """Run the command that `sys.argv` names, and end the process with its exit code.

    Raises:
        SystemExit: always.
    """
    try:
        from hybridkit._cli._app import app  # noqa: PLC0415 - needs the extra, whose absence is told without a stack
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    app(prog_name="hybridkit")
