"""Functions that tests of several packages share; shared fixtures are in the `conftest.py` of their folder."""

from tests.helpers._errors import error_of
from tests.helpers._rabbitmq import plain_channel
from tests.helpers._waiting import until

__all__ = ["error_of", "plain_channel", "until"]
