"""The event that tells other services and projections that a person is forgotten.

```python
from hybridkit.events.erasure import SubjectForgotten

@mailing.on(SubjectForgotten)
async def unsubscribe(event: SubjectForgotten, mailer: Mailer) -> None:
    if event.subject == "user_id":
        await mailer.forget(event.id)
```

The declaration enters the registry with the import of this module.
"""

from hybridkit.events._declaration import Event


class SubjectForgotten(Event, type="subject.forgotten", key="id"):
    """A data service has erased the personal data of a person; whoever has copies erases them too.

    Attributes:
        subject: the kind of id, such as `user_id`.
        id: the id.
    """

    subject: str
    id: str
