"""The manifest `hybridkit.toml` is found, read, and refused with every problem that it has."""

from pathlib import Path

import pytest

from hybridkit._cli._manifest import FILE_NAME, ServiceTable, find_manifest, load_manifest
from hybridkit.errors import DeclarationError


def written(folder: Path, text: str) -> Path:
    path = folder / FILE_NAME
    path.write_text(text)
    return path


def test_services_have_names_modules_and_settings(tmp_path: Path) -> None:
    """In the order of the file."""
    path = written(
        tmp_path,
        'name = "shop"\n[services.worker_service]\n[services.api_service]\nmodule = "shop.api"\n'
        'environment = { PAYMENT_URL = "http://127.0.0.1:9000" }\n',
    )
    manifest = load_manifest(path)
    assert manifest.name == "shop"
    assert list(manifest.services.items()) == [
        ("worker_service", ServiceTable()),
        (
            "api_service",
            ServiceTable(module="shop.api", environment={"PAYMENT_URL": "http://127.0.0.1:9000"}),
        ),
    ]
    assert manifest.modules() == {"worker_service": "worker_service.main", "api_service": "shop.api"}


def test_the_nearest_manifest_counts(tmp_path: Path) -> None:
    """It may be in a folder above; without one there is none."""
    inner = tmp_path / "services" / "api"
    inner.mkdir(parents=True)
    assert find_manifest(inner) is None
    path = written(tmp_path, "")
    assert find_manifest(inner) == path
    assert find_manifest(tmp_path) == path


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("name = ", ["is no TOML"]),
        ("", ["name: Field required", "services: Field required"]),
        ('name = "shop"\nservices = {}', ["services: Dictionary should have at least 1 item"]),
        (
            'name = "My shop"\nport = 1\n[services.api-service]\n[services.bot]\nmodul = "x"\nport = 8000\n',
            [
                "name: this should be a name in snake_case, such as api_service",
                "port: unknown key; known are name, services",
                "services.api-service: this should be a name in snake_case",
                "services.bot.modul: unknown key; did you mean module?",
                "services.bot.port: unknown key; known are module, environment",
            ],
        ),
        (
            'name = "shop"\n[services.bot]\nmodule = "bot/main.py"\nenvironment = { payment = "x", PORT = 8000 }',
            [
                "services.bot.module: this should be a module as in `python -m MODULE`",
                "services.bot.environment.payment: this should be a variable, such as PAYMENT_URL",
                "services.bot.environment.PORT: Input should be a valid string",
            ],
        ),
    ],
    ids=["syntax", "empty", "no services", "names and keys", "values"],
)
def test_all_problems_are_named_at_once(tmp_path: Path, text: str, problems: list[str]) -> None:
    """Each with its place, and an unknown key with the nearest known one."""
    path = written(tmp_path, text)
    with pytest.raises(DeclarationError) as raised:
        load_manifest(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert [problem for problem in problems if problem not in message] == []
