"""Declare data once, for the service that keeps it and the services that use it, and query it.

```python
class NewUser(BaseModel):
    email: str

class User(NewUser, Record):
    is_active: bool = True

class UserChanges(BaseModel):
    is_active: bool | None = None

USERS = Resource("users", record=User, create=NewUser, update=UserChanges,
                 filterable=("email", "is_active", "created_at"), sortable=("created_at",))

newest = Query(where=USERS["is_active"] == True, order=(("created_at", "desc"),), page_size=50)
by_state = Aggregation(group_by=("is_active",), functions={"users": count()})
```

The data service makes its routes from a resource, the client its types, the tests their fake.

A query has two forms on the wire. The one in a URL is flat and follows the grammar of PostgREST
(https://docs.postgrest.org/en/stable/references/api/tables_views.html):

```
?is_active=eq.true&total=gte.100&or=(status.eq.paid,total.is.null)&order=created_at.desc,id&select=id,total&page_size=50
```

In parentheses, a value with reserved characters is quoted: `customer.in.("a,b",c)`. In patterns, `*` stands for `%`.
The form in JSON is the tree itself, the body of `POST /v1/{resource}:query`:

```json
{"where": {"and": [{"eq": ["is_active", true]}, {"gte": ["total", "100"]}]},
 "order": [["created_at", "desc"]], "page_size": 50}
```

An aggregation has the form in JSON only, the body of `POST /v1/{resource}:aggregate`:

```json
{"group_by": ["status"], "functions": {"orders": ["count"], "revenue": ["sum", "price"]},
 "order": [["revenue", "desc"]], "limit": 100}
```

Reading any of these forms refuses fields that the resource doesn't declare, unknown operators and values of the wrong
type, with a JSON pointer to the part that is wrong.
"""

from hybridkit.resources._aggregations import (
    Aggregation,
    Function,
    average,
    count,
    distinct,
    largest,
    smallest,
    total,
)
from hybridkit.resources._audit import AUDIT, AuditEntry, AuditOperation, Change
from hybridkit.resources._filters import And, Compare, Field, Filter, Not, Operator, Or
from hybridkit.resources._queries import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Direction, Query
from hybridkit.resources._resource import Call, Record, Resource

__all__ = [
    "AUDIT",
    "DEFAULT_PAGE_SIZE",
    "MAX_PAGE_SIZE",
    "Aggregation",
    "And",
    "AuditEntry",
    "AuditOperation",
    "Call",
    "Change",
    "Compare",
    "Direction",
    "Field",
    "Filter",
    "Function",
    "Not",
    "Operator",
    "Or",
    "Query",
    "Record",
    "Resource",
    "average",
    "count",
    "distinct",
    "largest",
    "smallest",
    "total",
]
