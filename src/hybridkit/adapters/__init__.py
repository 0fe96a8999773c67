"""The kinds of process, one module each: `fastapi`, `aiogram` and `worker`; `dependencies` has the injection aliases.

This package imports none of them, as each needs an extra of its own.
"""
