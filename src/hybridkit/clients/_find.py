"""A query that is being built, and its answer: by pages, record by record, or as an export."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Protocol

from pydantic import BaseModel

from hybridkit.clients._answers import Counting, Page
from hybridkit.errors import InvalidQueryError, ResponseError
from hybridkit.resources import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Direction, Filter, Query
from hybridkit.resources._resource import AnyResource


class Source(Protocol):
    """Answers queries: a client's `QuerySource`, or a fake."""

    async def fetch_page[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query, *, count: Counting | None
    ) -> Page[ItemT]: ...

    def export[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query
    ) -> AsyncGenerator[ItemT]: ...


class Find[ItemT: BaseModel]:
    """A query on one resource; each method returns a new one, so that a common part can be shared.

    ```python
    async for user in client.find(USERS).where(USERS["is_active"] == True).order_by("created_at"):
        ...
    ```

    Made by `find` of a client.
    """

    def __init__(
        self, source: Source, resource: AnyResource, model: type[ItemT], query: Query | None = None
    ) -> None:
        self._source = source
        self._resource = resource
        self._model = model
        self._query = query or Query()

    def __repr__(self) -> str:
        return f"Find({self._resource.name!r}, {self._query!r})"

    def where(self, *conditions: Filter) -> "Find[ItemT]":
        """Keep only records for which all of these conditions hold, and all given before."""
        where = self._query.where
        for condition in conditions:
            where = condition if where is None else where & condition
        return self._with(replace(self._query, where=where))

    def order_by(self, *fields: str, descending: bool = False) -> "Find[ItemT]":
        """Order by these fields, after those given before; the id always comes last.

        Raises:
            InvalidQueryError: the resource doesn't declare a field as sortable.
        """
        for field in fields:
            if field != "id" and field not in self._resource.sortable:
                raise InvalidQueryError(
                    f"{self._resource.name} can't be ordered by {field!r}, only by"
                    f" {sorted({'id', *self._resource.sortable})}"
                )
        direction: Direction = "desc" if descending else "asc"
        added = tuple((field, direction) for field in fields)
        return self._with(replace(self._query, order=(*self._query.order, *added)))

    def page_size(self, size: int) -> "Find[ItemT]":
        """Set how many records one request brings, 1 to 1,000; 50 by default.

        Raises:
            InvalidQueryError: the size is outside of that range.
        """
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise InvalidQueryError(f"a page has 1 to {MAX_PAGE_SIZE} records, not {size}")
        return self._with(replace(self._query, page_size=size))

    def select[ModelT: BaseModel](self, model: type[ModelT]) -> "Find[ModelT]":
        """Read only the fields of a model, and return the records as that model.

        Args:
            model: a model with some of the record's fields, of types that take their values.

        Raises:
            InvalidQueryError: the record has no such field.
        """
        for name in model.model_fields:
            if name not in self._resource.record.model_fields:
                raise InvalidQueryError(f"{self._resource.name} has no field {name!r} for {model.__name__}")
        query = replace(self._query, select=tuple(model.model_fields))
        return Find(self._source, self._resource, model, query)

    async def page(self, token: str | None = None, *, count: Counting | None = None) -> Page[ItemT]:
        """Return one page.

        Args:
            token: the `next_page_token` of the page before, from the same query; None for the first page.
            count: ask for the page's `total_size` as well: `exact` makes the database look at every record that
                matches, `estimated` is its guess.

        Raises:
            PageTokenError: the token belongs to another query.
        """
        return await self._fetch(replace(self._query, page_token=token), count)

    async def count(self, *, exact: bool = True) -> int:
        """Count the records that match; with `exact=False` by the database's guess, without looking at each.

        Raises:
            ResponseError: the service has not counted them.
        """
        query = Query(where=self._query.where, select=("id",), page_size=1)
        page = await self._source.fetch_page(
            self._resource, _NoFields, query, count="exact" if exact else "estimated"
        )
        if page.total_size is None:
            raise ResponseError(f"the service has not counted its {self._resource.name}", response_status=200)
        return page.total_size

    async def first(self) -> ItemT | None:
        """Return the first record in the order, None where no record matches."""
        page = await self._fetch(replace(self._query, page_size=1), None)
        return page.items[0] if page.items else None

    def export(self) -> AsyncGenerator[ItemT]:
        """Yield every record, in one stream that may take any time, with a piece in memory at a time.

        The records are one consistent view where the database has such. To leave the loop early, close the stream:
        `async with contextlib.aclosing(find.export()) as records:`.

        Raises:
            UnavailableError: the stream was cut after the records so far; it never ends early without this error.
            ResponseError: a line is no such record.
        """
        query = replace(self._query, page_size=DEFAULT_PAGE_SIZE)
        return self._source.export(self._resource, self._model, query)

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        """Yield every record, page after page, with one page in memory at a time."""
        token: str | None = None
        while True:
            page = await self.page(token)
            for record in page.items:
                yield record
            token = page.next_page_token
            if token is None:
                return

    async def _fetch(self, query: Query, count: Counting | None) -> Page[ItemT]:
        return await self._source.fetch_page(self._resource, self._model, query, count=count)

    def _with(self, query: Query) -> "Find[ItemT]":
        return Find(self._source, self._resource, self._model, query)


class _NoFields(BaseModel):
    """A record that is counted and not looked at."""
