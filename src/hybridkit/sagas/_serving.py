"""Find the live sagas that this code can't serve: those in a state that was removed, or that newer code has written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from hybridkit.resources import Aggregation, count
from hybridkit.resources._aggregations import MAX_GROUPS
from hybridkit.sagas._commits import DataClient
from hybridkit.sagas._declaration import SagaDeclaration
from hybridkit.sagas._records import SAGAS, SagaStatus

if TYPE_CHECKING:
    from hybridkit.clients import PostgresDataClient

LIVE: Final = SAGAS["status"].in_([SagaStatus.RUNNING, SagaStatus.UNDOING])


@dataclass(frozen=True, slots=True)
class Unserved:
    """Live sagas that the code can't serve.

    Attributes:
        saga: the name of the declaration.
        definition: the version of the code that wrote them last.
        state: the state that they are in.
        sagas: their number.
        reason: the reason, in words.
    """

    saga: str
    definition: int
    state: str | None
    sagas: int
    reason: str


async def unserved(saga: SagaDeclaration[Any], client: DataClient) -> list[Unserved]:
    """Group the live sagas of a declaration, and return the groups that it can't serve.

    Args:
        saga: the declaration.
        client: the data service with the rows.
    """
    grouping = Aggregation(
        functions={"sagas": count()},
        group_by=("definition", "state", "status"),
        where=(SAGAS["saga"] == saga.name) & LIVE,
        limit=MAX_GROUPS,
    )
    rows = await cast("PostgresDataClient", client).aggregate(SAGAS, grouping)  # as MongoDB's client does too
    found = [
        Unserved(saga.name, row["definition"], row["state"], row["sagas"], reason)
        for row in rows
        if (reason := _reason(saga, row)) is not None
    ]
    return sorted(found, key=lambda each: (each.definition, each.state or ""))


def _reason(saga: SagaDeclaration[Any], row: dict[str, Any]) -> str | None:
    """Return why the code can't serve a group of rows; None if it can."""
    if row["definition"] > saga.version:
        return f"newer code has written them; this is version {saga.version}"
    # One that is being undone has no use for its state any more.
    runs = row["status"] == SagaStatus.RUNNING and row["state"] is not None
    if runs and row["state"] not in {str(state.value) for state in saga.states}:
        return f"{saga.states.__name__} has no such state; keep it until nobody is in it"
    return None
