"""Reports of what failed and was not expected, to Sentry or what speaks its protocol; without `SENTRY_DSN`, none.

An API reports its unexpected 5xx, a consumer, a bot and a job what they give up, and a process why it ends.
"""

from types import TracebackType
from typing import Final, Protocol, Self

from hybridkit.errors import MissingExtraError
from hybridkit.observability._flushing import flushed_within
from hybridkit.observability._tracing import fail_span
from hybridkit.settings import ServiceSettings

FLUSH_SECONDS: Final = 2.0


class Reporter(Protocol):
    """Sends errors to one system, without blocking."""

    def report(self, error: BaseException) -> None:
        """Queue a report of an error, with the context that is bound now."""
        ...

    def close(self, timeout_seconds: float) -> None:
        """Send the reports that are queued, and end; may block for as long as the timeout."""
        ...


_open: Final[list[Reporter]] = []
"""The reporters of this process; the last one reports."""


class ErrorReports:
    """The reports of this process. As `async with`, it sends the last ones when the block ends."""

    def __init__(self, reporter: Reporter | None) -> None:
        self._reporter = reporter

    def __repr__(self) -> str:
        return f"ErrorReports(reporting={self._reporter is not None})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send the reports that are left; a system that does not answer in time is left behind."""
        reporter, self._reporter = self._reporter, None
        if reporter is None:
            return
        _open.remove(reporter)
        await flushed_within(
            lambda: reporter.close(timeout_seconds), seconds=timeout_seconds, what="error-reports"
        )


def configure_error_reports(settings: ServiceSettings) -> ErrorReports:
    """Send this process's unexpected errors to `settings.sentry_dsn`; without one, do nothing.

    Raises:
        MissingExtraError: the setting is there, but the extra `sentry` is not installed.
    """
    if settings.sentry_dsn is None:
        return ErrorReports(None)
    try:
        from hybridkit.observability._sentry import SentryReporter  # noqa: PLC0415 # needs the extra
    except ImportError:
        raise MissingExtraError("SENTRY_DSN", extra="sentry") from None
    reporter = SentryReporter(settings, settings.sentry_dsn.get_secret_value())
    _open.append(reporter)
    return ErrorReports(reporter)


def report_error(error: BaseException) -> None:
    """Mark the current span as failed by an error that nobody expected, and report it where reports are sent.

    What is reported is masked by the rules of log lines; how often one error is reported is bounded.
    """
    fail_span(error)
    if _open:
        _open[-1].report(error)
