"""Where a server's program lives, and how it is run there: on this machine, or in the server root.

The server root is a Debian tree that `make servers` builds (`scripts/servers/build`). A program in it is started in a
mount namespace of its own, where /proc, /dev and the state directory are bound into the tree: the mounts are gone with
the process, whatever ends it.
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

# What the build script writes into stamp.json; a tree of another layout is not used.
SERVER_ROOT_LAYOUT = 1

_ENTER_TREE = (
    'tree=$0 state=$1; shift; mkdir -p "$tree$state" && mount --bind /proc "$tree/proc" && '
    'mount --bind /dev "$tree/dev" && mount --bind "$state" "$tree$state" && exec chroot "$tree" "$@"'
)


@dataclass(frozen=True, slots=True)
class HostRoot:
    """Programs of this machine. As root, servers run as an unprivileged user: PostgreSQL insists on it."""

    label: str = "this machine"

    @property
    def environment(self) -> Mapping[str, str]:
        """The whole environment of a server: of the caller's it gets the PATH, for what it calls itself."""
        return {"PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}", "LC_ALL": _LOCALE}

    def owner(self, user: str | None) -> Owner:
        """The user with that name, else `nobody`; whoever is not root stays the same."""
        if user is None or os.geteuid() != 0:
            return Owner()
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            entry = pwd.getpwnam("nobody")
        return Owner(entry.pw_uid, entry.pw_gid)

    def wrap(self, argv: Sequence[str], *, user: str | None, die_with_owner: str = "KILL") -> list[str]:
        """The command that becomes `argv` as that user and gets the signal when its owner dies."""
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
        """Where one of its paths is for us."""
        return Path(inside)


@dataclass(frozen=True, slots=True)
class ServerRoot:
    """A tree built by `make servers`: programs of a current Debian, beside the machine's own."""

    tree: Path
    state: Path
    versions: Mapping[str, str]
    label: str = "server root"

    @property
    def environment(self) -> Mapping[str, str]:
        """The whole environment of a server: nothing of the caller's reaches it."""
        return {"PATH": _SYSTEM_PATH, "LC_ALL": _LOCALE}

    def owner(self, user: str) -> Owner:
        """The tree's own user of that name: its numbers are not the machine's."""
        for line in (self.tree / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return Owner(int(uid), int(gid))
        raise ServerStartError(f"{self.tree} has no user {user!r}: build it again with `make servers`")

    def wrap(self, argv: Sequence[str], *, user: str, die_with_owner: str = "KILL") -> list[str]:
        """The command that enters the tree and becomes `argv` there; each step replaces the one before."""
        # setpriv comes last, inside: a change of user clears the signal that the parent's death is to send.
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
        """Where one of its paths is for us."""
        return self.tree / str(inside).lstrip("/")


Root = HostRoot | ServerRoot


def server_root_directory(environment: Mapping[str, str]) -> Path:
    """Where `make servers` builds: HYBRIDKIT_SERVER_ROOT, or a folder in the user's cache."""
    if chosen := environment.get("HYBRIDKIT_SERVER_ROOT"):
        return Path(chosen)
    return _user_cache(environment) / "servers"


def state_directory(environment: Mapping[str, str]) -> Path:
    """Where runs keep their data and their records.

    As root it is /var/cache/hybridkit: the users that servers run as can't enter root's home.
    """
    return Path("/var/cache/hybridkit") if os.geteuid() == 0 else _user_cache(environment)


def find_server_root(environment: Mapping[str, str]) -> ServerRoot | None:
    """The finished server root, or None where there is none that could be used."""
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
