"""Tests wait for conditions: `tests.helpers.until`, an event, a queue. How long something takes is no condition."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = [
    path
    for path in sorted(TESTS.glob("*/*.py"))
    if path.parent.name not in {"helpers", "proofs"} and "sleep(" in path.read_text()
]
# Here time is what the test is about: a reader that is slower than the deadline of a piece.
ABOUT_TIME = {
    "test_each_piece_has_the_deadline_and_not_the_whole",
    "test_the_deadline_of_an_export_is_that_of_each_piece",
}
FOR_EVER_SECONDS = 60


def sleeps(program: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield each sleep that is no pause of a loop which looks again, with the name of the function around it."""
    for node in ast.iter_child_nodes(program):
        if isinstance(node, ast.While) and len(node.body) == 1:
            continue
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"asyncio.sleep", "time.sleep", "sleep"}:
            yield name, node
        yield from sleeps(node, name)


def waits_for_time(call: ast.Call) -> bool:
    """Zero lets others run, and a minute stands for what never ends by itself."""
    match call.args:
        case [ast.Constant(value=int(seconds) | float(seconds))]:
            return 0 < seconds < FOR_EVER_SECONDS
        case _:
            return True


def test_no_test_sleeps_until_something_should_have_happened() -> None:
    """A stand-in may take time; a test may not wait for it to pass."""
    found = [
        f"{path.relative_to(TESTS)}:{call.lineno}: {ast.unparse(call)}"
        for path in FILES
        for name, call in sleeps(ast.parse(path.read_text()))
        if name.startswith("test_") and name not in ABOUT_TIME and waits_for_time(call)
    ]
    assert found == [], "wait with tests.helpers.until"


def test_a_sleep_is_found_and_a_pause_of_a_loop_is_not() -> None:
    """The rule above would hold for nothing if it saw no sleep."""
    program = ast.parse(
        "async def test_a():\n await asyncio.sleep(0.1)\n while not done():\n  await asyncio.sleep(0.1)"
    )
    assert [(name, call.lineno) for name, call in sleeps(program)] == [("test_a", 2)]
