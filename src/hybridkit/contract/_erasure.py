"""The body of `POST /v1:forget`, and its answer: the erasure of a person's data, batch by batch."""

from pydantic import BaseModel, ConfigDict, Field


class Forget(BaseModel):
    """Erase the personal data of one person.

    Attributes:
        subject: the kind of id by which the person is known, such as `user_id`.
        id: the id.
        after: the `next` of the answer before; None for the first batch.
        dry_run: count the rows, and change nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str = Field(min_length=1, max_length=63)
    id: str = Field(min_length=1, max_length=255)
    after: str | None = Field(default=None, max_length=1024)
    dry_run: bool = False


class Forgotten(BaseModel):
    """The outcome of one batch, or of all of them.

    Attributes:
        rows: the number of rows that were changed, or would be in a dry run, by the name of their resource or stream.
        next: where the next batch begins; None after the last one.
        announced: whether `subject.forgotten` was emitted, with the last batch.
    """

    rows: dict[str, int]
    next: str | None = None
    announced: bool = False
