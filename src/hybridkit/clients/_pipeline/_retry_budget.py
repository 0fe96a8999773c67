"""A budget of retries: a dead service sees at most 20 % more calls, plus a burst of ten."""

from typing import Final

PER_CALL: Final = 0.2
MAX_TOKENS: Final = 10.0


class RetryBudget:
    """A token bucket without a clock: calls fill it and retries empty it, so that it scales with the load.

    Args:
        per_call: the tokens that one call puts in.
        max_tokens: the most tokens that the bucket holds, and those it starts with.
    """

    def __init__(self, *, per_call: float = PER_CALL, max_tokens: float = MAX_TOKENS) -> None:
        self._per_call = per_call
        self._max_tokens = max_tokens
        self._tokens = max_tokens

    def __repr__(self) -> str:
        return f"RetryBudget({self._tokens:.1f} of {self._max_tokens:.0f})"

    def deposit(self) -> None:
        """Count a call, before its first attempt."""
        self._tokens = min(self._tokens + self._per_call, self._max_tokens)

    def withdraw(self) -> bool:
        """Take the token for one retry, and return whether there was one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
