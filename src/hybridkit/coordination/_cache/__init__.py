"""The cache: values in Redis, loaded once, and never older than their last invalidation.

```
callers ─► Cache ─► Entries ─► Redis          one script per read; a hit is one reply
             │         └─ without an answer in time: the value is loaded past Redis
             └─► Loads ─► a loader            one per key in the process, one per claim among all processes
```
"""
