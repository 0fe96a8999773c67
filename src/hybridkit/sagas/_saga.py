"""The saga as users declare it: the declaration, with the consumer that runs it."""

from functools import cached_property

from pydantic import BaseModel

from hybridkit.sagas._consumer import SagaConsumer
from hybridkit.sagas._declaration import SagaDeclaration


class Saga[DataT: BaseModel](SagaDeclaration[DataT]):
    __doc__ = SagaDeclaration.__doc__

    @cached_property
    def consumer(self) -> SagaConsumer:
        """The consumer of its queue, for `run_worker(consumers=[...])`; all handlers are registered before.

        Raises:
            DeclarationError: nothing starts the saga, or no handler names a state.
        """
        return SagaConsumer(self)
