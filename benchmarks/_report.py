"""One line per result: what was measured, the peer beside it in the same run, and the ratio that is asked for."""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A measurement of ours beside its peer's.

    Attributes:
        name: what was measured.
        ours: our figure, in `unit`.
        peer: the peer's figure, in `unit`.
        peer_name: whom we compare with.
        unit: of both; less is better.
        ratio: peer / ours; above 1 is better than the peer.
        goal: the ratio to reach at least.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    goal: float

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def cpu_microseconds(*operations: Callable[[], object], rounds: int = 15, repeat: int = 2_000) -> list[float]:
    """CPU time per call of each, the best of many rounds in which they take turns.

    Taking turns lets a noisy neighbour slow them down alike; the best round is the one it disturbed least.
    """
    best = [float("inf")] * len(operations)
    for _ in range(rounds):
        for index, operation in enumerate(operations):
            start = time.process_time()
            for _ in range(repeat):
                operation()
            best[index] = min(best[index], (time.process_time() - start) / repeat * 1e6)
    return best


def main(description: str, measure: Callable[[], Iterable[Result]]) -> None:
    """Read the command line of a benchmark without options of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    as_json = parser.parse_args().json
    for result in measure():
        show(result, as_json=as_json)


def show(result: Result, *, as_json: bool) -> None:
    """Print a result: a line of a table, or a JSON object."""
    if as_json:
        values = {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in asdict(result).items()
        }
        print(json.dumps({**values, "ratio": round(result.ratio, 3)}), flush=True)
    else:
        verdict = "reached" if result.ratio >= result.goal else "MISSED"
        print(
            f"{result.name:<28} ours {result.ours:>10.2f} {result.unit:<4} {result.peer_name} {result.peer:>10.2f}"
            f"   ratio {result.ratio:.2f} (goal {result.goal:.2f}: {verdict})",
            flush=True,
        )
