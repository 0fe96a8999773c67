"""Sagas: workflows over services that last for seconds or months, with what undoes them.

```python
place_order = Saga("worker_service.place_order", data=OrderData, states=Waiting, key="order_id")

@place_order.starts(OrderPlaced)
async def placed(event: OrderPlaced, saga: Run[OrderData]) -> None:
    saga.data = OrderData(total=event.total)
    saga.send(ReserveStock(order_id=event.order_id), undo=ReleaseStock(order_id=event.order_id))
    saga.wait(Waiting.STOCK, timeout=timedelta(minutes=15))
```

A saga is a consumer with a row. Each message moves the row by one transaction of the data service, with the commands
and events that follow. Nothing is replayed, so a handler is ordinary code.
"""

from hybridkit.sagas._handlers import Missing
from hybridkit.sagas._records import SAGAS, HistoryEntry, NewSaga, SagaRecord, SagaStatus, StoredMessage, Undo
from hybridkit.sagas._run import Run
from hybridkit.sagas._saga import Saga

__all__ = [
    "SAGAS",
    "HistoryEntry",
    "Missing",
    "NewSaga",
    "Run",
    "Saga",
    "SagaRecord",
    "SagaStatus",
    "StoredMessage",
    "Undo",
]
