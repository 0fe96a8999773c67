"""Declarations of events and commands, and the registry that knows them by type and version."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, ClassVar, Final, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from hybridkit._personal import personal_fields
from hybridkit.codec import field_errors, now
from hybridkit.context import bound
from hybridkit.errors import (
    DeclarationError,
    MalformedPayloadError,
    UnknownEventTypeError,
    UnknownEventVersionError,
)
from hybridkit.events._plain_fields import plain_fields
from hybridkit.ids import derived_id, new_id

__all__ = ["Command", "Event", "EventRegistry", "Message", "Upcaster", "encode_data", "registry"]

type Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""A function that turns the `data` of one version into that of the next."""

_TYPE_SYNTAX = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
QUEUE_PATTERN: Final = r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*"
_QUEUE_SYNTAX = re.compile(QUEUE_PATTERN)
MAX_TYPE_LENGTH: Final = 127


class Message(BaseModel):
    """The base of `Event` and `Command`: a type and a version on the wire, and an identity.

    The identity (`event_id`, `timestamp`) is fixed the first time it is asked for, at the latest when the message is
    published or emitted. Publishing the same object again is therefore the same event, and consumers remove the twin.
    Inside a claim the id derives from the claim, so that a rerun publishes the same event again.
    """

    model_config = ConfigDict(frozen=True)

    message_type: ClassVar[str] = ""
    message_version: ClassVar[int] = 1

    # A slot, not a private attribute of pydantic's: it costs nothing when a message is read, and it takes no part in
    # comparison, serialisation or copies (a copy with other data is another event).
    __slots__ = ("_identity",)

    @property
    def event_id(self) -> UUID:
        """The message's id; the same each time."""
        return self.identify()[0]

    @property
    def timestamp(self) -> datetime:
        """The time at which the message got its identity; UTC, whole milliseconds."""
        return self.identify()[1]

    @property
    def is_identified(self) -> bool:
        """Whether the message has its identity already."""
        try:
            _read_slot(self)
        except AttributeError:
            return False
        return True

    def identify(self) -> tuple[UUID, datetime]:
        """Return id and timestamp, and make them where there are none yet."""
        try:
            return cast("tuple[UUID, datetime]", _read_slot(self))
        except AttributeError:  # not made yet
            pass
        context = bound()
        claim = context.claim if context else None
        event_id = derived_id(claim.key, claim.step(f"emit {self.message_type}")) if claim else new_id()
        return self.identify_as(event_id, now())

    def identify_as(self, event_id: UUID, timestamp: datetime) -> tuple[UUID, datetime]:
        """Take over an identity that was made elsewhere: the envelope's, when a message has been read."""
        identity = (event_id, timestamp)
        _fill_slot(self, identity)
        return identity

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Register, as a decorator, how the `data` of a version becomes that of the next.

        Raises:
            DeclarationError: the version is not below this class's, or has an upcaster already.
        """
        if not 1 <= from_version < cls.message_version:
            raise DeclarationError(
                f"{cls.__name__} is version {cls.message_version}; an upcaster from {from_version} has no use"
            )

        def register(upcaster: Upcaster) -> Upcaster:
            registry.add_upcaster(cls.message_type, from_version, upcaster)
            return upcaster

        return register


# Past pydantic's `__getattr__`, which is slow where there is nothing; and the model is frozen, its slot is not.
_read_slot = vars(Message)["_identity"].__get__
_fill_slot = vars(Message)["_identity"].__set__


def encode_data(message: Message) -> bytes:
    """Write a message as JSON, as it stands in the `data` of an envelope.

    Raises:
        MalformedPayloadError: as for `write_data`.
    """
    return write_data(message)[0]


def write_data(message: Message) -> tuple[bytes, bool]:
    """Write a message as JSON, and return whether it may have long numbers or many levels, for `check_readable`.

    Raises:
        MalformedPayloadError: the message has no JSON form, or one that its own class can't read, such as null for NaN:
            every consumer would refuse it.
    """
    try:
        data = message.__pydantic_serializer__.to_json(message, by_alias=True)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise MalformedPayloadError(f"{message.message_type!r} has no JSON form: {error}") from None
    plain = plain_fields(type(message))
    if plain is not None and plain.fit(message):
        return data, plain.have_numbers
    try:
        message.__pydantic_validator__.validate_json(data)
    except ValidationError as error:
        raise MalformedPayloadError(
            f"{message.message_type!r} can't be read back from its JSON", errors=field_errors(error)
        ) from None
    except Exception as error:  # the validators of a declaration meet data that their author did not expect
        raise MalformedPayloadError(
            f"{message.message_type!r} can't be read back from its JSON: {type(error).__name__}"
        ) from error
    return data, True


class Event(Message):
    """A fact that is published to every service that wants to know it.

    It is declared as `class UserCreated(Event, type="user.created", version=1, key="user_id")`. The type has lower-case
    words with dots between them, the thing first; the version changes only on a breaking change; `key` names the field
    whose value keeps events in order. A class without a `type` is a base for others.
    """

    event_key: ClassVar[str | None] = None

    def __init_subclass__(
        cls, *, type: str | None = None, version: int = 1, key: str | None = None, **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        cls.message_type = type or ""
        cls.message_version = version
        cls.event_key = key

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Check the declaration, now that the fields are known, and register it.

        Raises:
            DeclarationError: the declaration contradicts itself; the message names both sides.
        """
        if not cls.message_type:
            return
        _check_type(cls)
        if cls.event_key is not None and cls.event_key not in cls.model_fields:
            raise DeclarationError(f"{cls.__name__} has no field {cls.event_key!r} to be its key")
        if any(field.name == cls.event_key for field in personal_fields(cls)):
            raise DeclarationError(
                f"{cls.__name__}: its key {cls.event_key!r} keeps the order of events, so it can't be personal data"
            )
        registry.add(cls)

    @property
    def ordering_key(self) -> str | None:
        """The value of the key field as text; None where the event type has no key."""
        if self.event_key is None:
            return None
        return str(getattr(self, self.event_key))


class Command(Message):
    """A request for work by exactly one queue: `class SendWelcomeEmail(Command, queue="email_tasks")`.

    Its type on the wire is `command.` and the class's name in snake case, unless `type` says otherwise.
    """

    queue: ClassVar[str] = ""

    def __init_subclass__(
        cls, *, queue: str | None = None, type: str | None = None, version: int = 1, **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        cls.queue = queue or ""
        cls.message_type = type or f"command.{_snake_case(cls.__name__)}"
        cls.message_version = version

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Check the declaration and register it.

        Raises:
            DeclarationError: the declaration contradicts itself; the message names both sides.
        """
        if not cls.queue:
            return
        if not _QUEUE_SYNTAX.fullmatch(cls.queue) or len(cls.queue) > MAX_TYPE_LENGTH:
            raise DeclarationError(
                f"{cls.__name__}: queue {cls.queue!r} is not in snake_case,"
                f" or has more than {MAX_TYPE_LENGTH} characters"
            )
        _check_type(cls)
        personal_fields(cls)
        registry.add(cls)


class EventRegistry:
    """The types of events and commands that this process knows, by type and version."""

    def __init__(self) -> None:
        self._types: dict[str, dict[int, type[Message]]] = {}
        self._newest: dict[str, type[Message]] = {}
        self._upcasters: dict[tuple[str, int], Upcaster] = {}

    def __repr__(self) -> str:
        return f"EventRegistry({sorted(self._types)})"

    def __iter__(self) -> Iterator[type[Message]]:
        """Iterate over every registered class, by type and then version."""
        for message_type in sorted(self._types):
            versions = self._types[message_type]
            yield from (versions[version] for version in sorted(versions))

    def add(self, message: type[Message]) -> None:
        """Register a declared type; the declaration itself calls this.

        Raises:
            DeclarationError: another class has this type and version.
        """
        versions = self._types.setdefault(message.message_type, {})
        known = versions.get(message.message_version)
        if known is not None and (known.__module__, known.__qualname__) != (
            message.__module__,
            message.__qualname__,
        ):
            raise DeclarationError(
                f"{message.__qualname__} and {known.__module__}.{known.__qualname__} are both"
                f" {message.message_type!r} version {message.message_version}"
            )
        versions[message.message_version] = message
        self._newest[message.message_type] = versions[max(versions)]

    def add_upcaster(self, message_type: str, from_version: int, upcaster: Upcaster) -> None:
        """Register the step from one version to the next.

        Raises:
            DeclarationError: the step has an upcaster already.
        """
        if (message_type, from_version) in self._upcasters:
            raise DeclarationError(f"{message_type!r} has an upcaster from version {from_version} already")
        self._upcasters[message_type, from_version] = upcaster

    def newest(self, message_type: str) -> type[Message] | None:
        """Return the class with the highest version of a type, if any."""
        return self._newest.get(message_type)

    def upcast_versions(self, message: type[Message]) -> list[int]:
        """Return the older versions that upcasters bring to a class, ascending."""
        oldest = newest = message.message_version
        while (message.message_type, oldest - 1) in self._upcasters:
            oldest -= 1
        return list(range(oldest, newest))

    def resolve(self, message_type: str, version: int) -> tuple[type[Message], tuple[Upcaster, ...]]:
        """Return the class that a message of a version becomes, and the upcasters that bring it there.

        Upcasters are followed as far as they go; the class declared for the version reached is the answer.

        Raises:
            UnknownEventTypeError: no class has this type.
            UnknownEventVersionError: no class has the version reached.
        """
        versions = self._types.get(message_type)
        if versions is None:
            raise UnknownEventTypeError(
                f"no event or command of type {message_type[:MAX_TYPE_LENGTH]!r} is declared in this process",
                event_type=message_type,
            )
        steps: list[Upcaster] = []
        while (step := self._upcasters.get((message_type, version + len(steps)))) is not None:
            steps.append(step)
        reached = versions.get(version + len(steps))
        if reached is None:
            newest = max(versions)
            raise UnknownEventVersionError(
                f"{message_type!r} version {version} is unknown here; the newest known is {newest}",
                event_type=message_type,
                version=version,
                known=newest,
            )
        return reached, tuple(steps)


registry: Final = EventRegistry()


def _check_type(message: type[Message]) -> None:
    if not _TYPE_SYNTAX.fullmatch(message.message_type) or len(message.message_type) > MAX_TYPE_LENGTH:
        raise DeclarationError(
            f"{message.__name__}: type {message.message_type!r} must be lower-case words with dots between them,"
            f" such as 'user.created', at most {MAX_TYPE_LENGTH} characters"
        )
    if message.message_version < 1:
        raise DeclarationError(
            f"{message.__name__}: version must be at least 1, not {message.message_version}"
        )


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
