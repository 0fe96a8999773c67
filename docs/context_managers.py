"""For the reference: what is decorated as a context manager is one, and no generator."""

# ruff: noqa: INP001 - a file that mkdocstrings loads by its path

from typing import Any

import griffe

__all__ = ["ContextManagers"]

KINDS = {
    "contextlib.asynccontextmanager": "AbstractAsyncContextManager",
    "contextlib.contextmanager": "AbstractContextManager",
}


class ContextManagers(griffe.Extension):
    """Writes `AbstractAsyncContextManager[X]` where the source, as it has to, says `AsyncGenerator[X]`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Look at the decorators of each function."""
        for decorator in func.decorators:
            kind = KINDS.get(decorator.callable_path)
            if kind is not None and isinstance(func.returns, griffe.ExprSubscript):
                func.returns.left = griffe.ExprName(kind)
                func.labels.discard("async")
