"""Accounts as streams of money, which several tests use."""

from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel

from hybridkit.errors import RejectedError
from hybridkit.events import Event
from hybridkit.streams import Stream


class Deposited(Event, type="account.deposited", key="account_id"):
    account_id: UUID
    amount: Decimal


class Withdrawn(Event, type="account.withdrawn", key="account_id"):
    account_id: UUID
    amount: Decimal


class Account(BaseModel):
    balance: Decimal = Decimal(0)
    movements: int = 0


ACCOUNTS = Stream("accounts", state=Account, key="account_id", snapshot_every=5)


@ACCOUNTS.apply(Deposited)
def deposited(account: Account, event: Deposited) -> Account:
    return Account(balance=account.balance + event.amount, movements=account.movements + 1)


@ACCOUNTS.apply(Withdrawn)
def withdrawn(account: Account, event: Withdrawn) -> Account:
    return Account(balance=account.balance - event.amount, movements=account.movements + 1)


class NotEnoughError(RejectedError):
    """The balance is below the amount."""


def withdrawal(account_id: UUID, amount: int) -> "Withdrawal":
    """Return a decision to withdraw an amount."""
    return Withdrawal(account_id, amount)


class Withdrawal:
    """A decision that counts how often it was asked."""

    def __init__(self, account_id: UUID, amount: int) -> None:
        self.account_id = account_id
        self.amount = amount
        self.calls = 0

    def __call__(self, account: Account) -> list[Event]:
        self.calls += 1
        if account.balance < self.amount:
            raise NotEnoughError("not enough money")
        return [Withdrawn(account_id=self.account_id, amount=Decimal(self.amount))]
