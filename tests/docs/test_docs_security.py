"""The page about security names tests that are there, for every chapter and every risk."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/explanation/security.md").read_text()
NOT_OFFERED = {"V17 WebRTC"}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if re.match(r"\| (V\d|API\d)", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_named_test_exists() -> None:
    """A test that was renamed or deleted would leave a claim that nothing shows."""
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named
    assert sorted(named - defined) == []


def test_every_point_has_a_test_or_a_reason() -> None:
    """All 17 chapters and 10 risks have a line, and each line says what shows it."""
    found = rows()
    chapters = {re.match(r"V\d+|API\d+", row[0]).group() for row in found}  # type: ignore[union-attr]
    assert chapters == {f"V{number}" for number in range(1, 18)} | {f"API{number}" for number in range(1, 11)}
    unshown = [row[0] for row in found if "`test_" not in row[2] and row[0] not in NOT_OFFERED]
    assert unshown == []
