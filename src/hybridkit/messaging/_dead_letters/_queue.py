"""Dead-letter queues: count their messages, look at them, and send them back to their consumers' queues.

```python
letters = DeadLetters(url, "email_tasks.dlq")
print(await letters.summary())
late = DeadLetterFilter(error_type="TimeoutError")
print(await letters.redrive(late, dry_run=True))
print(await letters.redrive(late, rate_per_second=50))
```

Sending back is a confirmed copy to the consumer's own queue, then the acknowledgement of the original: whenever the
process is killed, each message is in one of the two queues or in both, and the guard makes one effect of the two.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hybridkit._tasks import TaskSet
from hybridkit.errors import MisuseError, NackedError, RejectedError, UnroutableError
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._consumer import RobustConsumer
from hybridkit.messaging._dead_letters._letter import (
    DeadLetter,
    DeadLetterFilter,
    DeadLetterGroup,
    Groups,
    read_dead_letter,
)
from hybridkit.messaging._dead_letters._reader import QueueReader, Window, open_reader
from hybridkit.messaging._publishing._publisher import RobustPublisher
from hybridkit.messaging._topology._declared import DEAD_LETTER_EXCHANGE, UNROUTED, dead_letter_queue
from hybridkit.messaging._topology._management import fetch_virtual_host

IN_FLIGHT: Final = 100
"""The number of copies that may be unconfirmed at the same time."""
SLOWEST_PER_SECOND: Final = 0.01
MAX_NAME_BYTES: Final = 240
"""The longest name of a queue; the lock's name is a little longer."""
SERVICE: Final = "hybridkit_dlq"
FLUSH_SECONDS: Final = 60.0
"""The time for the last copies; each ends at its deadline, after 10 s if there is none."""

type Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterSummary:
    """The dead letters in a queue, by group.

    Attributes:
        queue: the queue's name.
        messages: the number of messages that wait in it.
        looked_at: the number of them that were counted, from the head; at most 50,000.
        groups: the groups by type, reason and error; the largest first.
    """

    queue: str
    messages: int
    looked_at: int
    groups: tuple[DeadLetterGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """The result of a redrive.

    Attributes:
        queue: the queue's name.
        messages: the number of messages that waited in it at the beginning; messages that came later are not touched.
        looked_at: the number of them that were looked at. Fewer than all of them after `limit`, and where 50,000 stay.
        matched: the number of them that match the filter.
        redriven: the number of those that are in their consumers' queues now; 0 in a dry run.
        failed: the number of those that are still in the queue, by error.
        groups: those that match, by type, reason and error.
        dry_run: whether nothing was to be changed.
    """

    queue: str
    messages: int
    looked_at: int
    matched: int
    redriven: int
    failed: Mapping[str, int]
    groups: tuple[DeadLetterGroup, ...]
    dry_run: bool

    @property
    def left(self) -> int:
        """The number of messages that waited at the beginning and still do."""
        return self.messages - self.redriven


class DeadLetters:
    """A dead-letter queue, or the parking queue `hk.unrouted`.

    Every call opens its own connections and reserves the queue, so that no two processes read it at the same time.

    Args:
        url: `amqp://user:password@host:port/vhost`, or `amqps://`; the user needs to read and declare the queue.
        queue: the queue's name: `email_tasks.dlq`.

    Raises:
        MisuseError: the name is empty or longer than 240 bytes.
    """

    def __init__(self, url: str, queue: str) -> None:
        if not 1 <= len(queue.encode()) <= MAX_NAME_BYTES:
            raise MisuseError(
                f"a queue's name has 1 to {MAX_NAME_BYTES} bytes here, not {len(queue.encode())}"
            )
        self.queue = queue
        self._url = url

    def __repr__(self) -> str:
        return f"DeadLetters({self.queue!r})"

    @staticmethod
    def queues_of(consumers: Iterable[RobustConsumer]) -> list[str]:
        """Return the names of these consumers' dead-letter queues, and of the parking queue."""
        return [*(dead_letter_queue(consumer.name) for consumer in consumers), UNROUTED]

    @staticmethod
    async def find_queues(management_url: str, *, vhost: str = "/") -> list[str]:
        """Return the names of all dead-letter queues of a virtual host, and of the parking queue.

        AMQP can't list queues, so this asks the management API for those that are bound to the dead-letter exchange.

        Args:
            management_url: `http://user:password@host:15672`, or `https://`; the user needs the tag `management`.
            vhost: the virtual host's name, `/` for the default one.

        Raises:
            MisuseError: the URL is no HTTP URL.
            AccessDeniedError: the user may not use the management API.
            UnavailableError: the management API did not answer in 10 s.
            ResponseError: the answer is not that of a management API that knows the virtual host.
        """
        bindings = (await fetch_virtual_host(management_url, vhost=vhost)).bindings
        exchanges = {DEAD_LETTER_EXCHANGE, UNROUTED}
        return sorted({each.target for each in bindings if each.source in exchanges and not each.to_exchange})

    async def summary(self) -> DeadLetterSummary:
        """Count the messages by type, reason and error; the queue stays as it is.

        Raises:
            NotFoundError: there is no such queue.
            InProgressError: another process reads it.
            TopologyError: the queue has a delivery limit, by which reading it could lose messages.
            NotConnectedError: the broker doesn't answer.
            AccessDeniedError: the user may not read or declare the queue.
        """
        groups = Groups()
        async with (
            open_reader(self._url, self.queue) as reader,
            reader.window(most=reader.messages) as window,
        ):
            while (message := await window.next()) is not None:
                groups.add(read_dead_letter(self.queue, window.seen, message))
                window.keep()
            return DeadLetterSummary(
                queue=self.queue,
                messages=reader.messages,
                looked_at=window.seen,
                groups=groups.largest_first(),
            )

    async def peek(self, matching: DeadLetterFilter | None = None, *, limit: int = 10) -> list[DeadLetter]:
        """Return the dead letters themselves, from the head; the queue stays as it is.

        Args:
            matching: selects dead letters; by default all.
            limit: the largest number of dead letters to return.

        Raises:
            HybridkitError: the queue can't be read, as in `summary`.
        """
        wanted = matching or DeadLetterFilter()
        found: list[DeadLetter] = []
        async with (
            open_reader(self._url, self.queue) as reader,
            reader.window(most=reader.messages) as window,
        ):
            while len(found) < limit and (message := await window.next()) is not None:
                letter = read_dead_letter(self.queue, window.seen, message)
                if wanted.matches(letter):
                    found.append(letter)
                window.keep()
        return found

    async def redrive(
        self,
        matching: DeadLetterFilter | None = None,
        *,
        dry_run: bool = False,
        rate_per_second: float | None = None,
        limit: int | None = None,
        on_progress: Progress | None = None,
    ) -> Redriven:
        """Send messages back to the queues of their consumers, in their order; the others stay, in theirs.

        Each runs again with all its attempts and the next generation, so a guard that remembers its failure lets it
        run. Messages that come into the queue meanwhile stay, also those that fail again. It may be called again after
        any error or crash: no message is lost, and those that were under way may be sent twice.

        Args:
            matching: selects dead letters; by default all.
            dry_run: whether to only count what would be sent.
            rate_per_second: the largest number of messages per second, from 0.01; by default as fast as the broker
                confirms.
            limit: the largest number of messages to send.
            on_progress: called over and over with the number of redriven and of failed messages.

        Raises:
            HybridkitError: the queue can't be read, as in `summary`; or no message can be published, as in
                `RobustPublisher.publish`.
            MisuseError: the rate is below 0.01.
        """
        work = _Redrive(matching or DeadLetterFilter(), limit, Pace(rate_per_second), on_progress)
        async with open_reader(self._url, self.queue) as reader:
            if dry_run:
                await work.look(reader)
            else:
                async with RobustPublisher(self._url, service=SERVICE) as publisher:
                    await work.send(reader, publisher)
            return work.result(reader, dry_run=dry_run)


class Pace:
    """Keeps a steady rate, without a burst after a pause.

    Args:
        rate_per_second: the rate; None for no limit.
        clock: returns seconds that never go back.
        sleep: waits for so many seconds.

    Raises:
        MisuseError: the rate is below 0.01.
    """

    def __init__(
        self,
        rate_per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if rate_per_second is not None and not rate_per_second >= SLOWEST_PER_SECOND:
            raise MisuseError(f"a rate is at least {SLOWEST_PER_SECOND} per second, not {rate_per_second}")
        self._interval_seconds = 0.0 if rate_per_second is None else 1 / rate_per_second
        self._clock = clock
        self._sleep = sleep
        self._next_at = clock()

    def __repr__(self) -> str:
        return f"Pace(interval_seconds={self._interval_seconds:g})"

    async def turn(self) -> None:
        """Wait until the next message may be sent."""
        begin = max(self._next_at, self._clock())
        self._next_at = begin + self._interval_seconds
        if (seconds := begin - self._clock()) > 0:
            await self._sleep(seconds)


class _Redrive:
    """One redrive, over as many windows as it takes."""

    def __init__(
        self, matching: DeadLetterFilter, limit: int | None, pace: Pace, on_progress: Progress | None
    ) -> None:
        self._matching = matching
        self._limit = limit
        self._pace = pace
        self._on_progress = on_progress
        self._groups = Groups()
        self._matched = 0
        self._redriven = 0
        self._left = 0
        self._failed = Counter[str]()
        self._error: Exception | None = None
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._tasks = TaskSet()

    def result(self, reader: QueueReader, *, dry_run: bool) -> Redriven:
        return Redriven(
            queue=reader.queue,
            messages=reader.messages,
            looked_at=self._redriven + self._left,
            matched=self._matched,
            redriven=self._redriven,
            failed=dict(self._failed),
            groups=self._groups.largest_first(),
            dry_run=dry_run,
        )

    async def look(self, reader: QueueReader) -> None:
        """Count the messages that would be sent."""
        async with reader.window(most=reader.messages) as window:
            while self._has_room() and (message := await window.next()) is not None:
                letter = read_dead_letter(reader.queue, window.seen, message)
                if self._matching.matches(letter):
                    self._count(letter)
                self._keep(window)

    async def send(self, reader: QueueReader, publisher: RobustPublisher) -> None:
        """Send the messages that match; a window that was cut short is followed by another."""
        is_through = False
        while not is_through:
            # The messages that earlier windows have left are at the head, in the same order.
            most = reader.messages - self._redriven
            async with reader.window(most=most, skip=self._left) as window:
                try:
                    await self._send_from(window, reader, publisher)
                finally:
                    # Copies that are under way acknowledge their originals, which is possible only in this window.
                    await self._tasks.wait(seconds=FLUSH_SECONDS)
                    await window.flush()
                is_through = not window.was_cut
            self._tell()
            if self._error is not None:
                raise self._error

    async def _send_from(self, window: Window, reader: QueueReader, publisher: RobustPublisher) -> None:
        while self._has_room() and (message := await window.next()) is not None:
            self._tell()
            letter = read_dead_letter(reader.queue, window.seen, message)
            if not self._matching.matches(letter):
                self._keep(window)
                continue
            await self._pace.turn()
            await self._slots.acquire()
            if window.is_over:  # while it waited for its turn: another consumer may have the message by now
                window.was_cut = True
                self._slots.release()
                return
            self._count(letter)
            self._tasks.start(self._move(window, message, letter, publisher), name="redriving")

    def _has_room(self) -> bool:
        return self._error is None and (self._limit is None or self._matched < self._limit)

    def _count(self, letter: DeadLetter) -> None:
        self._matched += 1
        self._groups.add(letter)

    def _keep(self, window: Window) -> None:
        self._left += 1
        window.keep()

    async def _move(
        self, window: Window, message: IncomingMessage, letter: DeadLetter, publisher: RobustPublisher
    ) -> None:
        """Publish one copy, then acknowledge. Copies are begun in the messages' order, and the broker keeps that."""
        try:
            await publisher._writer.forward(letter.copy())  # noqa: SLF001 - the same package
        except (UnroutableError, NackedError, RejectedError) as error:
            self._failed[str(error)] += 1
            self._keep(window)
        except Exception as error:  # noqa: BLE001 - no broker, or any other cause: the others would fail as well
            self._error = error
            self._keep(window)
        else:
            window.ack(message)
            self._redriven += 1
        finally:
            self._slots.release()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._redriven, self._failed.total())
