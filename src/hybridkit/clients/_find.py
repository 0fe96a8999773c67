"""A query being built, and its answer by pages or record by record."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from hybridkit.errors import InvalidQueryError
from hybridkit.filters import Filter
from hybridkit.queries import MAX_PAGE_SIZE, Direction, Query
from hybridkit.resources import Record, Resource

__all__ = ["Find", "Page"]


@dataclass(frozen=True, slots=True)
class Page[RecordT: Record[Any]]:
    """Some records, and where the next ones are.

    Attributes:
        items: at most `page_size` records.
        next_page_token: opaque; None on the last page.
    """

    items: tuple[RecordT, ...]
    next_page_token: str | None = None


type FetchPage[RecordT: Record[Any]] = Callable[
    [Resource[RecordT, Any, Any], Query], Awaitable[Page[RecordT]]
]


class Find[RecordT: Record[Any]]:
    """A query on one resource. Each method gives a new one, so that a common part can be shared.

    ```python
    async for user in client.find(USERS).where(USERS["is_active"] == True).order_by("created_at"):
        ...
    ```

    Made by `find` of a client.
    """

    def __init__(
        self, fetch: FetchPage[RecordT], resource: Resource[RecordT, Any, Any], query: Query | None = None
    ) -> None:
        self._fetch = fetch
        self._resource = resource
        self._query = query or Query()

    def __repr__(self) -> str:
        return f"Find({self._resource.name!r}, {self._query!r})"

    def where(self, *conditions: Filter) -> "Find[RecordT]":
        """Only records for which all of these hold, and all given before."""
        where = self._query.where
        for condition in conditions:
            where = condition if where is None else where & condition
        return self._with(replace(self._query, where=where))

    def order_by(self, *fields: str, descending: bool = False) -> "Find[RecordT]":
        """Order by these fields, after those given before; the id always comes last.

        Raises:
            InvalidQueryError: the resource doesn't declare a field as sortable.
        """
        for field in fields:
            if field != "id" and field not in self._resource.sortable:
                allowed = sorted({"id", *self._resource.sortable})
                raise InvalidQueryError(
                    f"{self._resource.name} can't be ordered by {field!r}, only by {allowed}"
                )
        direction: Direction = "desc" if descending else "asc"
        added = tuple((field, direction) for field in fields)
        return self._with(replace(self._query, order=(*self._query.order, *added)))

    def page_size(self, size: int) -> "Find[RecordT]":
        """How many records one request brings, 1 to 1,000; 50 without it.

        Raises:
            InvalidQueryError: outside of that.
        """
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise InvalidQueryError(f"a page has 1 to {MAX_PAGE_SIZE} records, not {size}")
        return self._with(replace(self._query, page_size=size))

    async def page(self, token: str | None = None) -> Page[RecordT]:
        """One page.

        Args:
            token: the `next_page_token` of the page before, from the same query; None for the first page.
        """
        return await self._fetch(self._resource, replace(self._query, page_token=token))

    async def first(self) -> RecordT | None:
        """The first record in the order, None where no record fits."""
        page = await self._with(replace(self._query, page_size=1)).page()
        return page.items[0] if page.items else None

    async def __aiter__(self) -> AsyncIterator[RecordT]:
        """Every record, page after page, one page in memory at a time."""
        token: str | None = None
        while True:
            page = await self.page(token)
            for record in page.items:
                yield record
            token = page.next_page_token
            if token is None:
                return

    def _with(self, query: Query) -> "Find[RecordT]":
        return Find(self._fetch, self._resource, query)
