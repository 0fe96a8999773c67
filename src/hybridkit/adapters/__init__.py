"""One file per kind of process: `fastapi`, `aiogram`, `worker`; what handlers ask for by type in `dependencies`.

Nothing is imported here: each of them needs an extra of its own.
"""
