"""A SecretUrl shows where it leads and hides how to get in."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hybridkit.settings import SecretUrl

MASK = "**********"
ADAPTER = TypeAdapter(SecretUrl)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:pw@rabbit:5672/vhost", f"amqp://{MASK}@rabbit:5672/vhost"),
        ("amqp://a:5672,b:5672/", "amqp://a:5672,b:5672/"),
        ("redis://:pw@[::1]:6379/0?password=pw", f"redis://{MASK}@[::1]:6379/0?{MASK}"),
        ("postgresql:///app?host=/run/postgresql", f"postgresql:///app?{MASK}"),
        ("https://hooks.example/services/T0/B0", f"https://hooks.example/{MASK}"),
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("HTTPS://Example.org/", "https://Example.org/"),
    ],
)
def test_scheme_hosts_and_database_are_shown(url: str, shown: str) -> None:
    """Enough to see where it leads."""
    secret = ADAPTER.validate_python(url)
    assert str(secret) == shown
    assert repr(secret) == f"SecretUrl('{shown}')"
    assert ADAPTER.dump_json(secret).decode() == f'"{shown}"'
    assert secret.get_secret_value() == url
    assert secret.scheme == shown.partition(":")[0]


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:p@ss@rabbit/",
        "amqp://user:p/ss@rabbit/",
        "amqp://user:p?ss@rabbit/",
        "amqp://user:p#ss@rabbit/",
        "amqp://user:12#34@rabbit/",
        "amqp://user:12/34@rabbit/",
        "amqp://user:[pw]@rabbit/",
        "amqp://user:p ss@rabbit/",
        "amqp://user:pw@rabbit:port/",
        "amqp://",
        "rabbit:5672",
        "",
    ],
)
def test_what_is_ambiguous_is_refused_and_never_shown(url: str) -> None:
    """A password could pass for a host."""
    with pytest.raises(ValidationError, match="should be a URL like"):
        ADAPTER.validate_python(url)
    assert str(SecretUrl(url)) == MASK


@given(st.text(min_size=1))
def test_no_text_in_the_place_of_a_password_is_shown(password: str) -> None:
    """Escaped or not, valid or not: what stands between the colon and the host does not come out."""
    url = f"amqp://user:\N{SNOWMAN}{password}\N{SNOWMAN}@rabbit/"
    assert "\N{SNOWMAN}" not in str(SecretUrl(url))


def test_it_is_not_pickled_but_copied() -> None:
    """A pickle would hold the password."""
    secret = SecretUrl("amqp://user:pw@rabbit/")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
