"""What data over HTTP costs: the client per call, the data service per read, a write with its key and its event.

Every comparison is against what one would write without us, in the same run and with the same content; each part's
module says how. PostgreSQL is started as `hybridkit.dev` finds it; figures of a stand-in would say nothing, so it has
to be a real one.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable
from typing import Final

from benchmarks._report import Result, show

PARTS: Final = ("client", "server", "writes", "audit")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    chosen = parser.parse_args()
    for part in (chosen.only,) if chosen.only else PARTS:
        for result in _measure(part):
            show(result, as_json=chosen.json)


def _measure(part: str) -> Iterable[Result]:
    """Run a part; its module is imported only now, as each part needs libraries of its own."""
    try:
        module = importlib.import_module(f"benchmarks._data_{part}")
    except ImportError as error:
        print(f"{part}: left out, {error}", file=sys.stderr, flush=True)
        return ()
    results: Iterable[Result] = module.measure()
    return results


if __name__ == "__main__":
    main()
