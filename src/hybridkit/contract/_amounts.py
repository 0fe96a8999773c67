"""Amounts of increments as JSON has them: numbers, whose decimals are exactly what was meant."""

import math
from decimal import Decimal

from hybridkit.errors import InvalidRequestError


def json_amount(name: str, amount: object) -> int | float:
    """Return the amount of an increment as a number of JSON.

    Args:
        name: the field, for the error.
        amount: the number to add; a decimal has at most the 15 digits that a JSON number keeps exactly, or is whole.

    Raises:
        InvalidRequestError: the amount is no finite number, or a decimal that no JSON number is.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | float | Decimal) or not math.isfinite(amount):
        raise InvalidRequestError(
            f"{name} is incremented by {amount!r}, which is no finite int, float or Decimal"
        )
    if not isinstance(amount, Decimal):
        return amount
    if amount == amount.to_integral_value() and abs(amount) < 2**53:
        return int(amount)
    number = float(amount)
    if Decimal(repr(number)) != amount:
        raise InvalidRequestError(
            f"{name} is incremented by {amount}, of which a JSON number keeps {number!r}; add at most 15 digits at a"
            " time"
        )
    return number
