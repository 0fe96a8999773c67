"""Errors that blame the code or its deployment: retrying cannot help."""

from collections.abc import Sequence

from hybridkit.errors._root import HybridkitError


class MisuseError(HybridkitError):
    """Something is wrong in the code or in how it is deployed; retrying cannot help."""

    code = "MISUSE"


class SettingsError(MisuseError):
    """The configuration is unusable. The message lists every problem at once and never shows a value.

    Attributes:
        problems: one line per problem: the setting, what is wrong, and what to set.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *problems]))
        self.problems = tuple(problems)


class MissingExtraError(MisuseError, ImportError):
    """A module needs an optional dependency that is not installed.

    Attributes:
        extra: the extra to install, as in `pip install "hybridkit[EXTRA]"`.
    """

    def __init__(self, module: str, *, extra: str, or_extra: str = "") -> None:
        another = f' or "hybridkit[{or_extra}]"' if or_extra else ""
        super().__init__(f'{module} needs an optional dependency: pip install "hybridkit[{extra}]"{another}')
        self.extra = extra


class DeclarationError(MisuseError, TypeError):
    """A Resource, Event, Retry policy or consumer was declared in a way that contradicts itself."""


class SharedStepError(MisuseError):
    """Two tasks of one claim write the same at once, so a rerun could take one write for the other: name each step.

    Attributes:
        method: the method of the client whose argument `step` tells the two apart.
    """

    code = "STEP_SHARED"

    def __init__(self, message: str, *, method: str = "") -> None:
        super().__init__(message)
        self.method = method


class UnroutableError(MisuseError):
    """The broker confirmed the publish, but no queue wants the message (`basic.return`).

    Attributes:
        exchange: the exchange to which it was published; empty in the error of another process.
        routing_key: its routing key; empty in the error of another process.
    """

    code = "UNROUTABLE"

    def __init__(self, message: str, *, exchange: str = "", routing_key: str = "") -> None:
        super().__init__(message)
        self.exchange = exchange
        self.routing_key = routing_key


class TopologyError(MisuseError):
    """The broker has an exchange, queue or binding that differs from the declared one.

    Attributes:
        differences: one line per difference, if all of them were looked for.
    """

    def __init__(self, message: str, *, differences: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *differences]))
        self.differences = tuple(differences)


class NotSupportedError(MisuseError):
    """The server at hand cannot do this."""

    code = "NOT_SUPPORTED"
    status = 501


class TransactionsUnavailableError(NotSupportedError):
    """The database has no transactions, so only one record can be written at a time."""

    code = "TRANSACTIONS_UNAVAILABLE"


class ServerMissingError(MisuseError):
    """No local server of that kind can be had on this machine.

    Attributes:
        missing: one line per way to get one, each with what it needs.
    """

    def __init__(self, message: str, *, missing: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *missing]))
        self.missing = tuple(missing)
