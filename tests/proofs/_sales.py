"""The observations of the relay's proof, and the verdict: rows on one side, messages on the other.

The order of commits is PostgreSQL's own record (`track_commit_timestamp`), so that the proof takes nothing for granted
that it has to prove.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Arrival", "Row", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row that was committed together with its event.

    Attributes:
        id: of the row and of its event.
        key: the event's; empty where it has none.
        committed_at: seconds, by the database's clock.
        place: the event's number in its transaction.
        not_before: seconds, by the same clock; 0 where it may be published at once.
    """

    id: str
    key: str
    committed_at: float
    place: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message of a queue; `at` in seconds, by the clock of the database's machine."""

    id: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong, and how much there was of it.

    Attributes:
        lost: rows whose event never arrived.
        rowless: events without a row.
        disordered: keys of which an event first arrived after one that was committed later.
        early: events that came before their time.
        duplicates: arrivals after an event's first.
        most_copies: of one event.
        seconds: from each commit (or the time that was waited for) to the first arrival, sorted.
    """

    lost: Sequence[str]
    rowless: Sequence[str]
    disordered: Sequence[str]
    early: Sequence[str]
    duplicates: int
    most_copies: int
    seconds: Sequence[float]

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        return not (self.lost or self.rowless or self.disordered or self.early)

    def within(self, share: float) -> float:
        """Return the seconds within which a share of the events has arrived."""
        return (
            self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)] if self.seconds else 0.0
        )


def judge(rows: Iterable[Row], arrivals: Sequence[Arrival]) -> Verdict:
    """Compare rows and arrivals."""
    by_id = {row.id: row for row in rows}
    copies = Counter(arrival.id for arrival in arrivals)
    first: dict[str, float] = {}
    for arrival in arrivals:
        first.setdefault(arrival.id, arrival.at)
    arrived = [by_id[event_id] for event_id in first if event_id in by_id]
    return Verdict(
        lost=sorted(by_id.keys() - first.keys()),
        rowless=sorted(first.keys() - by_id.keys()),
        disordered=_disordered(arrived),
        early=sorted(row.id for row in arrived if first[row.id] < row.not_before),
        duplicates=copies.total() - len(copies),
        most_copies=max(copies.values(), default=0),
        seconds=sorted(first[row.id] - max(row.committed_at, row.not_before) for row in arrived),
    )


def _disordered(arrived: Iterable[Row]) -> list[str]:
    """Return the keys whose events did not first arrive in the order of their commits."""
    keys: Mapping[str, list[tuple[float, int]]] = defaultdict(list)
    for row in arrived:
        if row.key:
            keys[row.key].append((row.committed_at, row.place))
    return sorted(key for key, places in keys.items() if places != sorted(places))
