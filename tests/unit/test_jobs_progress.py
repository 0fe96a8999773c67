"""Progress of long work: log lines, metrics, a record."""

import pytest
from structlog.testing import capture_logs

from hybridkit.errors import DeclarationError
from hybridkit.jobs import Progress, ProgressState
from hybridkit.observability import metrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_progress_is_told_now_and_then_and_at_the_end() -> None:
    """A line each ten seconds, with how much is done, and the same states to the record."""
    clock, states = Clock(), list[ProgressState]()

    async def record(state: ProgressState) -> None:
        states.append(state)

    before = metrics.work_items.labels("import_users")._value.get()
    with capture_logs() as lines:
        async with Progress("import_users", total=4, record=record, clock=clock) as progress:
            for seconds in (1, 9, 5):
                clock.now += seconds
                await progress.advance()
            assert (progress.state.done, progress.state.ratio) == (3, 0.75)
            await progress.advance()
    assert [(line["event"], line["done"], line["percent"], line["seconds"]) for line in lines] == [
        ("work goes on", 2, 50, 10.0),
        ("work is done", 4, 100, 15.0),
    ]
    assert [(state.done, state.has_ended, state.error) for state in states] == [
        (2, False, None),
        (4, True, None),
    ]
    assert metrics.work_items.labels("import_users")._value.get() == before + 4
    assert metrics.work_progress.labels("import_users")._value.get() == 1.0


async def test_work_that_is_broken_off_says_so() -> None:
    """The error goes on, and the last line names its class and how far the work has come."""
    states: list[ProgressState] = []

    async def record(state: ProgressState) -> None:
        states.append(state)
        raise OSError("the store is down")

    progress = Progress("import_users", record=record)

    async def work() -> None:
        async with progress:
            await progress.advance(3)
            raise ValueError("bad row")

    with capture_logs() as lines, pytest.raises(ValueError, match="bad row"):
        await work()
    assert [line["event"] for line in lines] == ["work was broken off", "progress could not be recorded"]
    assert (lines[0]["done"], lines[0]["error_type"]) == (3, "ValueError")
    assert "percent" not in lines[0]
    assert (states[0].ratio, states[0].error) == (None, "ValueError")
    assert repr(progress) == "Progress('import_users', done=3, total=None)"


async def test_progress_needs_no_record() -> None:
    """A log line and the metrics are enough."""
    with capture_logs() as lines:
        async with Progress("import_users", total=0):
            pass
    assert [(line["event"], line["percent"]) for line in lines] == [("work is done", 100)]


@pytest.mark.parametrize(("done", "total", "ratio"), [(0, 0, 1.0), (5, 4, 1.0), (1, 4, 0.25)])
def test_the_ratio_is_between_zero_and_one(done: int, total: int, ratio: float) -> None:
    """No items at all are done, and more than expected are not more than all."""
    assert ProgressState("w", done, total, 0.0).ratio == ratio


def test_names_and_numbers_are_checked() -> None:
    """A name is a label of metrics, so it has few values."""
    for name in ("Import", "import 7", "a" * 101, ""):
        with pytest.raises(DeclarationError, match="snake_case"):
            Progress(name)
    with pytest.raises(DeclarationError, match="negative"):
        Progress("work", total=-1)
    with pytest.raises(DeclarationError, match="negative"):
        Progress("work", every_seconds=-1)
