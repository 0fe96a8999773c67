"""The reference is complete: every public module and metric has its place, and every page is in the navigation."""

import re
import tomllib
from pathlib import Path

import pytest

from hybridkit.observability import metrics

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "hybridkit"


def public_modules() -> set[str]:
    """Root modules and packages; what is inside a package is reached through it."""
    files = {path.stem for path in PACKAGE.glob("*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return {name for name in files | packages if not name.startswith("_")}


def test_every_public_module_has_a_reference_page() -> None:
    """And every page a module."""
    pages = {path.stem for path in ROOT.glob("docs/reference/*.md")} - {
        "index",
        "cli",
        "metrics",
        "column-types",
    }
    assert pages == public_modules()


def test_the_index_of_the_reference_names_every_page() -> None:
    """By a link, with a line of what is in it."""
    index = (ROOT / "docs/reference/index.md").read_text()
    assert [name for name in sorted(public_modules()) if f"]({name}.md)" not in index] == []


def test_the_index_of_the_how_tos_names_every_guide() -> None:
    """By the title that the guide has, so that a reader who searches for one finds the other."""
    index = (ROOT / "docs/how-to/index.md").read_text()
    guides = [path for path in sorted(ROOT.glob("docs/how-to/*.md")) if path.name != "index.md"]
    titles = {path.name: path.read_text().partition("\n")[0].removeprefix("# ") for path in guides}
    assert [name for name, title in titles.items() if f"* [{title}]({name})" not in index] == []


def test_every_page_is_in_the_navigation() -> None:
    """The strict build only knows the pages that exist; this names the one that was forgotten."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert [page for page in pages if page not in navigation] == []


def test_the_layers_that_are_explained_are_the_ones_that_are_checked() -> None:
    """The page has the contract of import-linter word for word."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [re.sub(r"[()]", "", layer).replace(" : ", ", ") for layer in contracts[0]["layers"]]
    assert "\n".join(checked) in (ROOT / "docs/explanation/architecture.md").read_text()


@pytest.mark.parametrize("page", ["docs/explanation/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    """By the end of their path, as a reader looks for them."""
    places = (ROOT / "src", ROOT / "tests", ROOT / "scripts", ROOT / "docs")
    files = {f"/{path.relative_to(ROOT).as_posix()}" for place in places for path in place.rglob("*.py")}
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / page).read_text())
    assert len(named) > 10
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def test_the_folders_that_the_architecture_draws_exist() -> None:
    """And every package is in the drawing."""
    drawing = (
        (ROOT / "docs/explanation/architecture.md")
        .read_text()
        .partition("src/hybridkit/\n")[2]
        .partition("```")[0]
    )
    drawn = set(re.findall(r"(\w+)/", drawing))
    folders = {path.parent.name for path in PACKAGE.rglob("__init__.py")} - {"hybridkit"}
    assert drawn <= folders
    assert folders - drawn <= {"_driver", "_types", "_openapi", "_migrations", "versions"}


def test_the_list_of_metrics_is_the_code_s() -> None:
    """Names, kinds, labels and meanings, neither more nor less; every label is explained."""
    page = (ROOT / "docs/reference/metrics.md").read_text()
    rows: list[str] = []
    labels: set[str] = set()
    for attribute in dir(metrics):
        if attribute.startswith("_"):
            continue
        metric = getattr(metrics, attribute)
        [family] = metric.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels.update(metric._labelnames)
        named = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append(f"| `{name}` | {family.type} | {named} | {family.documentation.rstrip('.')} |")
    told = re.findall(r"^\| `hybridkit_.*? \| (?:histogram|gauge|counter) \|.*$", page, re.MULTILINE)
    assert sorted(told) == sorted(rows)
    explained = re.findall(r"^\| `([a-z_]+)` \| [^|]+ \|$", page.partition("## Labels")[2], re.MULTILINE)
    assert {name for name in explained if not name.startswith("hybridkit_")} == labels


def test_the_metrics_that_a_page_names_exist() -> None:
    """An alert on a metric that does not exist never fires."""
    known = {
        sample
        for attribute in dir(metrics)
        if not attribute.startswith("_")
        for sample in samples_of(attribute)
    }
    page = (ROOT / "docs/how-to/watch-a-service.md").read_text()
    named = set(re.findall(r"\bhybridkit_[a-z_]+", page))
    assert len(named) > 20
    assert named - known == set()


def samples_of(attribute: str) -> set[str]:
    """Return the names under which Prometheus has a metric."""
    [family] = getattr(metrics, attribute).describe()
    match family.type:
        case "counter":
            return {f"{family.name}_total"}
        case "histogram":
            return {family.name, *(f"{family.name}_{part}" for part in ("bucket", "sum", "count"))}
        case _:
            return {family.name}


def test_context_managers_are_shown_as_such() -> None:
    """Their source has to say that they are generators, which is of no use to whoever enters them."""
    griffe = pytest.importorskip("griffe", reason="the tools of the documentation are not installed")
    configured = (ROOT / "mkdocs.yml").read_text()
    assert "extensions: [docs/context_managers.py]" in configured
    extensions = griffe.load_extensions(str(ROOT / "docs/context_managers.py"))
    package = griffe.load("hybridkit", search_paths=[str(ROOT / "src")], extensions=extensions)
    claim = package["idempotency._guard.IdempotencyGuard.claim"]
    assert str(claim.returns) == "AbstractAsyncContextManager[Claimed]"
    assert "async" not in claim.labels
