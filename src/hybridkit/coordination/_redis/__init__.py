"""The shared connection: commands of one turn of the event loop travel together, and replies come in their order.

```
callers ─► Multiplexer ─► NodeConnection ─► OpenConnection ─► socket       one write per turn, one read for many replies
             │                  └─ made again after a loss, by redis-py's handshake
             ├─ ClusterMultiplexer ─► one NodeConnection for each owner of slots
             └─ plain commands of redis-py, where its socket can't be taken over
```
"""
