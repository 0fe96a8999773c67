"""Local servers for one owner: started on request, and ended when the owner closes them or dies."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self

from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers import _choice
from hybridkit.dev._servers._containers import container_problem
from hybridkit.dev._servers._programs import find_programs, postgres_from_wheel
from hybridkit.dev._servers._server import Kind, Server
from hybridkit.dev._servers._server_root import find_server_root, state_directory
from hybridkit.errors import MisuseError


class LocalServers:
    """Servers of the best kind that this machine has, as child processes with their own data.

    ```text
    with LocalServers() as servers:
        postgres = servers.start("postgres")
        print(postgres.url, postgres.source)
    ```

    Entering the block also cleans up after owners that were killed.

    Args:
        environment: where URLs and the server root are looked up; `os.environ` by default.
    """

    def __init__(self, *, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._run: Run | None = None

    def __repr__(self) -> str:
        return f"LocalServers({self._run!r})"

    def __enter__(self) -> Self:
        self._run = Run(state_directory(self._environment))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, kind: Kind, *, private: bool = False) -> Server:
        """Start a server of the best origin that is available, and wait until it answers.

        Args:
            kind: `postgres`, `mongo`, `redis`, `rabbitmq` or `mongo_transactions`.
            private: skip a URL in the environment, because the server is going to be killed or frozen.

        Raises:
            ServerMissingError: no origin is available; the message says what is missing.
            ServerStartError: the server did not come up.
        """
        return _choice.start(
            _choice.choose(kind, discovery(self._environment), private=private), self._entered()
        )

    def start_rabbitmq_cluster(self, *, size: int = 3) -> Sequence[Server]:
        """Start RabbitMQ nodes that form one cluster; each takes 150 MB of memory.

        Args:
            size: the number of nodes.

        Raises:
            ServerMissingError: RabbitMQ is not installed as a program; containers can't form a cluster.
            ServerStartError: a node did not come up.
        """
        return _choice.start_rabbitmq_cluster(self._entered(), discovery(self._environment), size=size)

    def start_all(self, kinds: Sequence[Kind]) -> list[Server]:
        """Start several servers at the same time and wait until all answer. When one fails, all are ended.

        Args:
            kinds: the kinds of servers, as in `start`.

        Raises:
            ServerMissingError: no origin of one of them is available.
            ServerStartError: one of them did not come up.
        """
        with ThreadPoolExecutor(max_workers=len(kinds) or 1) as pool:
            try:
                return list(pool.map(self.start, kinds))
            except BaseException:
                # The pool waits for the others, which fail at once when their processes are gone.
                self.close()
                raise

    def _entered(self) -> Run:
        if self._run is None:
            raise MisuseError("LocalServers is a context manager: enter it before starting a server")
        return self._run

    def close(self) -> None:
        """End every server and remove its data. Servers that are still starting in other threads fail."""
        if self._run is not None:
            self._run.close()


def discovery(environment: Mapping[str, str]) -> _choice.Discovery:
    """Return the look-ups for this machine."""
    root = find_server_root(environment)
    return _choice.Discovery(
        environment=environment,
        find_programs=partial(find_programs, root=root, search_path=environment.get("PATH", os.defpath)),
        container_problem=container_problem,
        has_module=lambda name: importlib.util.find_spec(name) is not None,
        find_wheel=partial(postgres_from_wheel, state=state_directory(environment)),
    )
