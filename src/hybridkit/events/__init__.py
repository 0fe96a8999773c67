"""Declare events and commands, and read and write the envelopes that carry them.

```python
class UserCreated(Event, type="user.created", version=1, key="user_id"):
    user_id: UUID
    email: str

class SendWelcomeEmail(Command, queue="email_tasks"):
    user_id: UUID
```

A declaration enters the registry, so that a consumer can turn bytes back into the class. On the wire, an envelope has
the message in its member `data`:

```json
{"event_type": "user.created", "event_id": "1f1e…", "timestamp": "2025-01-15T10:30:00Z", "service": "api_service",
 "request_id": "…", "user_id": null, "data": {"user_id": "…", "email": "user@example.com"}}
```

`version` (1 where absent), `causation_id` and `reply_to` are optional. Members that a reader doesn't know are ignored.
"""

from hybridkit.events._declaration import (
    Command,
    Event,
    EventRegistry,
    Message,
    Upcaster,
    encode_data,
    registry,
)
from hybridkit.events._envelope import EventEnvelope, ReplyTo, decode_envelope, encode_message

__all__ = [
    "Command",
    "Event",
    "EventEnvelope",
    "EventRegistry",
    "Message",
    "ReplyTo",
    "Upcaster",
    "decode_envelope",
    "encode_data",
    "encode_message",
    "registry",
]
