"""Describe events and commands for people and programs without this code, and check whether a change breaks them.

```python
document = event_schemas()                  # after importing the modules that declare events
Path("events.json").write_bytes(to_json(document))
```

A released document is kept in the repository; `check` compares it with the code at hand. A change within one version
has to hold in both directions, as services are deployed one after another and messages wait in queues meanwhile:

| change within one version | messages sent before | services not yet deployed |
|---|---|---|
| optional field added or removed | read | read |
| default changed | read | read |
| required field added, optional one made required | **refused** | read |
| required field removed or made optional | read | **refuse** |
| type, format or pattern changed | **refused** | **refuse** |
| values taken out of an enumeration, limits narrower, null no longer allowed | **refused** | read |
| values added to an enumeration, limits wider, null allowed | read | **refuse** |
| unknown fields forbidden | **refused**, if there were any | read |
| field added where unknown fields are forbidden | read | **refuse** |
| key or queue changed, event key removed | **out of order, or lost** | **out of order, or lost** |
| type or version removed | **refused** | read |
| version replaced by a newer one with an upcaster | read | wait for their deployment |

A change that makes a message refused is breaking: raise the version and add an upcaster. Keywords of JSON Schema that
are not understood have to stay as they are.

https://json-schema.org/draft/2020-12
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from hybridkit.events.schemas._asyncapi import asyncapi_document
from hybridkit.events.schemas._differences import SchemaDifference, check
from hybridkit.events.schemas._json_schemas import Schema, event_schemas, to_json

__all__ = ["Schema", "SchemaDifference", "asyncapi_document", "check", "event_schemas", "to_json"]
