"""Tools for tests of services: fixtures for pytest, fakes that speak the real protocols, and faults.

Names are imported when they are used, because pytest imports this package in every project that has it installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridkit.errors import MissingExtraError

if TYPE_CHECKING:
    from hybridkit.dataservice._memory._table import UniqueWhere
    from hybridkit.testing._api import running_api, signed_in
    from hybridkit.testing._collected_events import CollectedEvents, collect_events
    from hybridkit.testing._data_faults import DataFaults
    from hybridkit.testing._data_service import FakeDataService
    from hybridkit.testing._policies import assert_every_route_has_a_policy
    from hybridkit.testing._projections import catch_up
    from hybridkit.testing._proxy import FaultProxy
    from hybridkit.testing._saga_bench import GivenUp, SagaBench
    from hybridkit.testing._saga_proof import prove_participant, prove_saga
    from hybridkit.testing._stack import Stack
    from hybridkit.testing._stack_environment import StackService
    from hybridkit.testing._telegram._fake import FakeTelegram
    from hybridkit.testing._telegram._limits import LimitViolation
    from hybridkit.testing._telegram._records import SentMessage, TelegramButton, TelegramUser
    from hybridkit.testing._virtual_clock import VirtualClock
    from hybridkit.testing._waiting import until

__all__ = [
    "CollectedEvents",
    "DataFaults",
    "FakeDataService",
    "FakeTelegram",
    "FaultProxy",
    "GivenUp",
    "LimitViolation",
    "SagaBench",
    "SentMessage",
    "Stack",
    "StackService",
    "TelegramButton",
    "TelegramUser",
    "UniqueWhere",
    "VirtualClock",
    "assert_every_route_has_a_policy",
    "catch_up",
    "collect_events",
    "prove_participant",
    "prove_saga",
    "running_api",
    "signed_in",
    "until",
]

_HOMES = {
    "running_api": "hybridkit.testing._api",
    "signed_in": "hybridkit.testing._api",
    "CollectedEvents": "hybridkit.testing._collected_events",
    "DataFaults": "hybridkit.testing._data_faults",
    "FakeDataService": "hybridkit.testing._data_service",
    "FakeTelegram": "hybridkit.testing._telegram._fake",
    "FaultProxy": "hybridkit.testing._proxy",
    "prove_participant": "hybridkit.testing._saga_proof",
    "prove_saga": "hybridkit.testing._saga_proof",
    "GivenUp": "hybridkit.testing._saga_bench",
    "SagaBench": "hybridkit.testing._saga_bench",
    "LimitViolation": "hybridkit.testing._telegram._limits",
    "SentMessage": "hybridkit.testing._telegram._records",
    "Stack": "hybridkit.testing._stack",
    "StackService": "hybridkit.testing._stack_environment",
    "TelegramButton": "hybridkit.testing._telegram._records",
    "TelegramUser": "hybridkit.testing._telegram._records",
    "UniqueWhere": "hybridkit.dataservice._memory._table",
    "VirtualClock": "hybridkit.testing._virtual_clock",
    "catch_up": "hybridkit.testing._projections",
    "collect_events": "hybridkit.testing._collected_events",
    "until": "hybridkit.testing._waiting",
    "assert_every_route_has_a_policy": "hybridkit.testing._policies",
}


def __getattr__(name: str) -> Any:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(home), name)
    except ImportError as error:
        if (error.name or "").startswith("hybridkit"):  # a mistake of ours
            raise
        raise MissingExtraError(f"{__name__}.{name}", extra="testing") from error
