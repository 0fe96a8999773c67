"""The identity of a transaction in a claim: its key, the ids of its new records, and those of its events.

Its key derives from what the transaction writes, so that one of a loop is found again in any order. Its new ids are
needed inside the block, when that is not known; they derive from the order of the blocks, and from the first record
that the block writes before.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from hybridkit.clients._write_identity import WriteStep, begin_write, digest_of, running_task, with_step
from hybridkit.codec import now
from hybridkit.context import Claim, Step
from hybridkit.contract import Emission, Operation
from hybridkit.events import Message
from hybridkit.ids import derived_id, new_id

_LATER = UUID(int=0)


class TransactionIdentity:
    """The ids and the step of one transaction.

    Args:
        claim: the claim of the work; None for random ids and a random key.
        step: the caller's name for the transaction.
    """

    def __init__(self, claim: Claim | None, step: str | None) -> None:
        self._claim = claim
        self._step = step
        self._block: Step | None = None
        self._minted: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._unidentified: dict[int, Message] = {}

    def __repr__(self) -> str:
        return f"TransactionIdentity({self._claim!r}, {self._step!r})"

    @property
    def is_derived(self) -> bool:
        """Whether a rerun finds the same identity."""
        return self._claim is not None

    def new_id(self, resource: str, operations: Sequence[Operation]) -> UUID:
        """Return the id of a new record.

        Args:
            resource: the name of its resource.
            operations: those of the block so far.

        Raises:
            SharedStepError: another task of the claim makes ids in such a block.
        """
        if self._claim is None:
            return new_id()
        if self._block is None:
            target = f" {operations[0].op} {operations[0].resource} {operations[0].id}" if operations else ""
            name = with_step(f"transaction{target}" if self._step is None else "transaction", self._step)
            self._block = self._claim.begin(name, running_task(), method="transaction")
        part = f"create {resource}#{self._counts[resource]}"
        self._counts[resource] += 1
        made = derived_id(self._claim.key, f"{self._block.name} {part}")
        self._minted.add(str(made))
        return made

    def note(self, message: Message, index: int) -> tuple[UUID, datetime] | None:
        """Return a stand-in for the identity of a message that gets it with the key; None for any other.

        Args:
            message: to be emitted.
            index: of its emission.
        """
        if self._claim is None or message.is_identified:
            return None
        self._unidentified[index] = message
        return _LATER, now()

    def begin(
        self, operations: Sequence[Operation], emit: Sequence[Emission], cancelled: Sequence[UUID] = ()
    ) -> WriteStep:
        """Begin the write.

        Raises:
            SharedStepError: another task of the claim writes the same.
        """
        if self._claim is None:
            return WriteStep()
        written = {(each.op, each.resource, self._known(each.id)) for each in operations}
        told = {("emit", each.event_type, self._known(each.key or "")) for each in emit}
        told |= {("cancel", "", str(event_id)) for event_id in cancelled}
        name = "transact" if self._step is not None else f"transact {digest_of(written | told)}"
        events = [(each.event_type, each.key, each.data) for each in emit]
        return begin_write(
            name,
            method="transaction",
            step=self._step,
            content=(list(operations), events, list(cancelled)),
            by_order=not cancelled and not any(target for _, _, target in written),
        )

    def identified(self, emit: Sequence[Emission], write: WriteStep) -> tuple[Emission, ...]:
        """Return the emissions with the ids of their messages, which derive from the step where there were none."""
        made = list(emit)
        counts: Counter[str] = Counter()
        for index, message in self._unidentified.items():
            kind = message.message_type
            if not message.is_identified:
                message.identify_as(write.id_of(f"emit {kind}#{counts[kind]}"), emit[index].timestamp)
                counts[kind] += 1
            event_id, timestamp = message.identify()
            made[index] = emit[index].model_copy(update={"event_id": event_id, "timestamp": timestamp})
        return tuple(made)

    def end(self, *, committed: bool) -> None:
        """End the block: one that was not committed leaves its ids to the next try."""
        if self._block is None:
            return
        if committed:
            self._block.__exit__(None, None, None)
        else:
            self._block.give_back()

    def _known(self, record_id: str) -> str:
        """Return the id, or empty for one that was made in the block."""
        return "" if record_id in self._minted else record_id
