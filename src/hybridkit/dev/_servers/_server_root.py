"""The file trees that server programs are installed in, and the commands that run them there.

The server root is a Debian tree that `make servers` builds (`scripts/servers/build`). A program in it is started in its
own mount namespace, where /proc, /dev and the state directory are bound into the tree. The mounts end with the process,
however it ends.
"""

import json
import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridkit.dev._processes._process import LINUX, Owner
from hybridkit.errors import ServerStartError

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LOCALE = "C.UTF-8"

# The layout that the build script writes into stamp.json; a tree with another one is not used.
SERVER_ROOT_LAYOUT = 1

_ENTER_TREE = (
    'tree=$0 state=$1; shift; mount --bind /proc "$tree/proc" && mount --rbind /dev "$tree/dev" && '
    'mkdir -p "$tree$state" && mount --bind "$state" "$tree$state" && exec chroot "$tree" "$@"'
)


@dataclass(frozen=True, slots=True)
class HostRoot:
    """This machine's own tree. When run by root, servers run as another user, on which PostgreSQL insists."""

    label: str = "this machine"

    @property
    def environment(self) -> Mapping[str, str]:
        """The complete environment of a server: of the caller's it has the PATH, for programs it runs."""
        return {"PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}", "LC_ALL": _LOCALE}

    def owner(self, user: str | None) -> Owner:
        """Return the user of that name or `nobody`, or the caller itself when it is not root."""
        if user is None or os.geteuid() != 0:
            return Owner()
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            entry = pwd.getpwnam("nobody")
        return Owner(entry.pw_uid, entry.pw_gid)

    def wrap(self, argv: Sequence[str], *, user: str | None, die_with_owner: str = "KILL") -> list[str]:
        """Return the command that runs `argv` as a user, and gets the signal when its owner dies."""
        owner = self.owner(user)
        if LINUX and shutil.which("setpriv"):
            change = (
                []
                if owner.uid is None
                else [f"--reuid={owner.uid}", f"--regid={owner.gid}", "--clear-groups"]
            )
            return ["setpriv", *change, "--pdeathsig", die_with_owner, "--", *argv]
        if owner.uid is not None:
            raise ServerStartError(
                f"to run {argv[0]} as another user than root, install setpriv (util-linux)"
            )
        return list(argv)

    def path(self, inside: Path | str) -> Path:
        """Return the path outside of the tree for a path inside of it."""
        return Path(inside)


@dataclass(frozen=True, slots=True)
class ServerRoot:
    """A tree built by `make servers`, with programs of a current Debian beside the machine's own."""

    tree: Path
    state: Path
    versions: Mapping[str, str]
    label: str = "server root"

    @property
    def environment(self) -> Mapping[str, str]:
        """The complete environment of a server, with nothing of the caller's."""
        return {"PATH": _SYSTEM_PATH, "LC_ALL": _LOCALE}

    def owner(self, user: str) -> Owner:
        """Return the tree's user of that name; its ids differ from the machine's."""
        for line in (self.tree / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return Owner(int(uid), int(gid))
        raise ServerStartError(f"{self.tree} has no user {user!r}: build it again with `make servers`")

    def wrap(self, argv: Sequence[str], *, user: str, die_with_owner: str = "KILL") -> list[str]:
        """Return the command that enters the tree and runs `argv` there as a user, each step by `exec`."""
        # setpriv comes last: a change of user clears the signal for the death of the parent.
        become = [
            "setpriv",
            f"--reuid={user}",
            f"--regid={user}",
            "--init-groups",
            "--pdeathsig",
            die_with_owner,
        ]
        enter = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _ENTER_TREE]
        return [*enter, str(self.tree), str(self.state), *become, "--", *argv]

    def path(self, inside: Path | str) -> Path:
        """Return the path outside of the tree for a path inside of it."""
        return self.tree / str(inside).lstrip("/")


Root = HostRoot | ServerRoot


def server_root_directory(environment: Mapping[str, str]) -> Path:
    """Return the folder of `make servers`: HYBRIDKIT_SERVER_ROOT, or one in the user's cache."""
    if chosen := environment.get("HYBRIDKIT_SERVER_ROOT"):
        return Path(chosen)
    return _user_cache(environment) / "servers"


def state_directory(environment: Mapping[str, str]) -> Path:
    """Return the folder that runs keep their data and records in: HYBRIDKIT_STATE_DIRECTORY, or one in a cache.

    For root that is /var/cache/hybridkit, as the users that servers run as can't enter root's home.
    """
    if chosen := environment.get("HYBRIDKIT_STATE_DIRECTORY"):
        return Path(chosen)
    return Path("/var/cache/hybridkit") if os.geteuid() == 0 else _user_cache(environment)


def find_server_root(environment: Mapping[str, str]) -> ServerRoot | None:
    """Return the server root, or None when there is no finished or usable one."""
    directory = server_root_directory(environment)
    try:
        stamp = json.loads((directory / "stamp.json").read_text())
    except (OSError, ValueError):
        return None
    if not LINUX or os.geteuid() != 0 or stamp.get("layout") != SERVER_ROOT_LAYOUT:
        return None
    return ServerRoot(directory / "root", state_directory(environment), stamp["versions"])


def _user_cache(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hybridkit"
