"""The results of the demo, for people and for tests."""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One condition that has to hold.

    Attributes:
        name: the condition, as a sentence.
        passed: whether it holds.
        detail: figures, or the reason why it does not hold.
    """

    name: str
    passed: bool
    detail: str = ""


@dataclass(slots=True)
class Report:
    """All checks so far, each printed when it is made."""

    checks: list[Check] = field(default_factory=list[Check])
    story: list[str] = field(default_factory=list[str])

    @property
    def passed(self) -> bool:
        """Whether there were checks and all of them hold."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def check(self, name: str, passed: bool, detail: str = "") -> None:  # noqa: FBT001  # the one thing to say
        """Print and record whether a condition holds."""
        self.checks.append(Check(name=name, passed=passed, detail=detail))
        say(f"  {'PASS' if passed else 'FAIL'}  {name}{f'  ({detail})' if detail else ''}")

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps({"passed": self.passed, **asdict(self)}, ensure_ascii=False, indent=2)

    def __str__(self) -> str:
        held = sum(check.passed for check in self.checks)
        return f"{held} of {len(self.checks)} checks hold"


class Stopwatch:
    """The milliseconds since its creation, as text."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __str__(self) -> str:
        return f"{(time.perf_counter() - self._since) * 1000:.0f} ms"


@contextmanager
def chapter(title: str) -> Generator[Stopwatch]:
    """Print a heading, and time the block."""
    say(f"\n{title}")
    yield Stopwatch()


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201  # the demo speaks by printing
