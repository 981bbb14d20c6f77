"""A library's words for its options, as the command line prints them."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import guards
from guards.calibration.finished import Calibration
from guards.calibration.shown import ShownTable
from guards.methods.registry import CUBE
from server.cli.calibration_summary import print_summary
from server.cli.flags import as_flags
from server.cli.main import build_parser
from tests.guards.samples import CALIBRATION, IDENTITY, cubes

GUARDS = Path(guards.__path__[0])


def known_flags(parser: argparse.ArgumentParser) -> set[str]:
    """Those of every command."""
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(*(known_flags(child) for child in action.choices.values()))
    return found


def help_texts(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Those of every command."""
    for action in parser._actions:
        yield str(action.help)
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from help_texts(child)


def texts_of(file: Path) -> Iterator[str]:
    """Every text in a module but the docstrings."""
    tree = ast.parse(file.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


TEXTS = [(file, text) for file in sorted(GUARDS.rglob("*.py")) for text in texts_of(file)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("got `batch_tokens` 0", "got --batch-tokens 0"),
        ("leave it out of `frames`", "leave it out of --frame"),
        ("give `alpha` and `regime`", "give --alpha and --regime"),
        ("`skillguard calibrate` makes them", "`skillguard calibrate` makes them"),
        ("no option", "no option"),
    ],
)
def test_an_option_in_backticks_is_shown_as_its_flag(text: str, shown: str) -> None:
    assert as_flags(text) == shown


def test_a_warning_is_printed_with_flags_too(capsys: pytest.CaptureFixture[str]) -> None:
    warning = "tau was lowered below what `recall` 0.95 needs, to keep `max_false_abstention` 0.01"
    done = Calibration(
        method=CUBE, guard=cubes(), identity=IDENTITY, record=CALIBRATION, canaries=(), warnings=(warning,)
    )
    table = ShownTable(("frame",), (("chat",),))
    print_summary(done, table, skill="sums", model="m", output=Path("o"), report=Path("r"), digest="0" * 64)
    shown = "below what --recall 0.95 needs, to keep --max-false-abstention 0.01"
    assert shown in capsys.readouterr().out


def test_help_is_printed_with_flags_too() -> None:
    shown = list(help_texts(build_parser()))
    assert any("wins over --recall" in text for text in shown)
    assert [text for text in shown if as_flags(text) != text] == []


def test_the_library_speaks_of_options_and_never_of_flags() -> None:
    assert [(file.name, text) for file, text in TEXTS if re.search(r"(?<![\w-])--[a-z]", text)] == []


def test_every_option_that_the_library_names_is_a_flag() -> None:
    named = {as_flags(option) for _, text in TEXTS for option in re.findall(r"`[a-z_]+`", text)}
    assert {"--frame", "--max-false-abstention", "--model"} < named, "positive control"
    assert named <= known_flags(build_parser())
