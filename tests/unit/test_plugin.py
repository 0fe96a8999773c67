"""The pytest plugin costs nothing until a test asks, skips with the reason, and in CI fails instead."""

import subprocess
import sys

import pytest

from hybridkit.dev import Kind, LocalServers, Server, SharedServers
from hybridkit.errors import ServerMissingError

ASK = """
    import pytest

    def test_asks(redis_url):
        pass
"""
ASK_FOR_REAL = """
    import pytest

    @pytest.mark.real_server
    def test_asks(own_redis_server):
        pass
"""

# Without the plugins that this suite has and the project of a user need not have.
PLAIN = ("-p", "no:asyncio", "-p", "no:xdist", "-p", "no:timeout", "-p", "no:hypothesispytest")


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(_self: object, kind: Kind, **_options: object) -> Server:
        raise ServerMissingError(f"no {kind} server", missing=["URL: set one", "binary: install one"])

    monkeypatch.setattr(SharedServers, "get", get)
    monkeypatch.setattr(LocalServers, "start", get)


@pytest.fixture
def only_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_self: object, kind: Kind, **_options: object) -> Server:
        return Server(kind, "redis://127.0.0.1:1/0", source="embedded: stand-in, fakeredis", is_real=False)

    monkeypatch.setattr(LocalServers, "start", start)


@pytest.mark.parametrize("fixture", ["redis_url", "postgres_url", "own_mongo_server"])
@pytest.mark.usefixtures("nothing_here")
def test_a_missing_server_is_a_skip_that_says_what_to_do(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, fixture: str
) -> None:
    """The reason lists each way to get one."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(ASK.replace("redis_url", fixture))
    result = pytester.runpytest_inprocess("-rs", *PLAIN)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no * server (URL: set one; binary: install one)"])


@pytest.mark.parametrize("value", ["true", "1"])
@pytest.mark.usefixtures("nothing_here")
def test_in_ci_a_missing_server_is_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A green run that tested nothing would be a lie."""
    monkeypatch.setenv("CI", value)
    pytester.makepyfile(ASK)
    result = pytester.runpytest_inprocess(*PLAIN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*CI is set*no redis server*"])


@pytest.mark.usefixtures("only_a_stand_in")
def test_a_stand_in_does_not_do_for_a_test_of_the_real_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker asks for the real one: a skip here, a failure in CI."""
    pytester.makepyfile(ASK_FOR_REAL)
    monkeypatch.delenv("CI", raising=False)
    result = pytester.runpytest_inprocess("-rs", "--strict-markers", *PLAIN)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs a real redis server*embedded: stand-in, fakeredis*"])
    monkeypatch.setenv("CI", "true")
    pytester.runpytest_inprocess("--strict-markers", *PLAIN).assert_outcomes(errors=1)


@pytest.mark.usefixtures("only_a_stand_in")
def test_a_stand_in_does_for_any_other_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test runs, in CI too."""
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(ASK_FOR_REAL.replace("@pytest.mark.real_server", ""))
    pytester.runpytest_inprocess(*PLAIN).assert_outcomes(passed=1)


def test_the_plugin_loads_nothing_but_pytest() -> None:
    """pytest imports it in every project where hybridkit is installed."""
    script = """
        import sys, pytest
        before = set(sys.modules)
        import hybridkit.testing.plugin
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(new - sys.stdlib_module_names))
        print("hybridkit.dev" in sys.modules, "asyncio" in set(sys.modules) - before)
    """
    argv = [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines())]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["['hybridkit']", "False False"]
