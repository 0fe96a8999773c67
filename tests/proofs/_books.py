"""The ledger's books: the record of what was promised and what happened, and the verdict.

Each process appends lines to a file of its own, in one write each, so that a line is there completely or not at all:

```
81723.125 plan    1f1e… order            a publisher is about to publish
81723.131 confirm 1f1e… order            its publish was confirmed
81723.171 effect  1f1e… ledger.orders K  a handler has written its effect, with the idempotency key K
81723.180 dead    1f1e… ledger.orders    its dead letter was found
```

An effect is one write to a data service. There a second write with the same idempotency key changes nothing and gets
the first one's response. So lines with the same key are one effect, a handler that has run to its end twice counts as
`repeated`, and two keys for one event count as `doubled`.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ORDERS = "ledger.orders"
WATCHERS = "ledger.watchers"
TASKS = "ledger_tasks"
OBLIGED = {"order": (ORDERS, WATCHERS), "poison": (ORDERS, WATCHERS), "task": (TASKS,)}
"""By kind: the queues that have to see a confirmed message."""
PREFETCHED = 2 * 3 * 16
"""How many messages of a queue two consumers have in hand at most; a deletion doesn't count these."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a book; `at` is the time of the machine's monotonic clock, which all processes share."""

    at: float
    verb: str
    event_id: str
    where: str
    detail: str = ""


class Book:
    """A file of lines, which survives its process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __repr__(self) -> str:
        return f"Book({self.path.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, verb: str, event_id: object, where: str, detail: object = "") -> None:
        """Append a line."""
        os.write(
            self._file, f"{time.monotonic():.3f} {verb} {event_id} {where} {detail}".rstrip().encode() + b"\n"
        )


def read_books(folder: Path) -> Iterator[Line]:
    """Return all lines of all books."""
    for path in sorted(folder.glob("*.book")):
        for text in path.read_text().splitlines():
            at, verb, event_id, where, *detail = text.split(" ", 4)
            yield Line(float(at), verb, event_id, where, *detail)


@dataclass(frozen=True, slots=True)
class Deletion:
    """The deletion of a queue, which loses its messages by definition.

    Attributes:
        queue: the name of the queue.
        at: the time when it was gone.
        healed_at: the time when it was declared and bound again.
        messages: the number of its ready messages.
    """

    queue: str
    at: float
    healed_at: float
    messages: int


@dataclass(slots=True)
class Balance:
    """The result of comparing the books."""

    published: int = 0
    confirmed: int = 0
    unknown: int = 0
    refused: int = 0
    early: int = 0
    effects: int = 0
    dead_letters: int = 0
    dead_letter_copies: int = 0
    deleted_with_queue: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    doubled: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    repeated: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, doubled, repeated or early."""
        return not (self.lost or self.doubled or self.repeated or self.early)


def balance(lines: Iterable[Line], deletions: Iterable[Deletion] = ()) -> Balance:
    """Compare what was promised with what happened."""
    by_verb: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_verb[line.verb].append(line)
    keys: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for line in by_verb["effect"]:
        keys[line.where, line.event_id][line.detail] += 1
    dead = Counter((line.where, line.event_id) for line in by_verb["dead"])
    plans = {line.event_id: line for line in by_verb["plan"]}
    missing = [
        (queue, line)
        for line in by_verb["confirm"]
        for queue in OBLIGED[line.where]
        if (queue, line.event_id) not in keys and (queue, line.event_id) not in dead
    ]
    lost, gone = _without_deleted(missing, plans, list(deletions))
    return Balance(
        published=len(plans),
        confirmed=len({line.event_id for line in by_verb["confirm"]}),
        unknown=len(by_verb["unknown"]),
        refused=len(by_verb["refused"]),
        early=len(by_verb["early"]),
        effects=len(keys),
        dead_letters=len(dead),
        dead_letter_copies=dead.total() - len(dead),
        deleted_with_queue=gone,
        lost=lost,
        # An effect of a message that nobody has published, or beside a dead letter of it, is one too many as well.
        doubled=[
            place for place, of in keys.items() if len(of) > 1 or place in dead or place[1] not in plans
        ],
        repeated=[place for place, of in keys.items() if max(of.values()) > 1],
    )


def _without_deleted(
    missing: list[tuple[str, Line]], plans: dict[str, Line], deletions: list[Deletion]
) -> tuple[list[tuple[str, str]], int]:
    """Return what is missing without a reason, and the number of messages that a deleted queue has taken.

    A message may be missing if it was published while the queue was deleted, or was in the queue. The broker tells how
    many messages were ready; others were unacknowledged.
    """
    lost: list[tuple[str, str]] = []
    left = {deletion: deletion.messages + PREFETCHED for deletion in deletions}
    for queue, confirm in missing:
        planned_at = plans[confirm.event_id].at
        later = [each for each in deletions if each.queue == queue and planned_at < each.healed_at]
        if any(confirm.at > each.at for each in later):
            continue
        held = next((each for each in later if left[each] > 0), None)
        if held is None:
            lost.append((queue, confirm.event_id))
        else:
            left[held] -= 1
    return lost, len(missing) - len(lost)
