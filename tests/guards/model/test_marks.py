"""Stand-ins are found again, with the edges that a template left, and nothing else is taken for one."""

import pytest

from guards.model.marks import Marks, SpecialTexts


@pytest.fixture
def marks() -> Marks:
    return Marks(SpecialTexts(["<|end|>"]))


def test_an_edge_that_is_gone_trims_its_side(marks: Marks) -> None:
    mark = marks.whole(" a ")
    left, right = mark.lstrip(), mark.rstrip()
    assert marks.pieces(f"[{mark}]") == [("[", True), (" a ", False), ("]", True)]
    assert marks.pieces(f"[{left}]")[1] == ("a ", False)
    assert marks.pieces(f"[{right}]")[1] == (" a", False)
    assert marks.pieces(f"[{mark.strip()}]")[1] == ("a", False)


def test_stand_ins_side_by_side_share_nothing(marks: Marks) -> None:
    first, second = marks.whole(" a "), marks.whole(" b ")
    assert [text for text, _ in marks.pieces(first + second)] == ["", " a ", "", " b ", ""]
    # One edge between two is the first's.
    assert [text for text, _ in marks.pieces(first + second.lstrip())] == ["", " a ", "", "b ", ""]
    assert marks.kept(second) == [False, True]


def test_a_part_that_spells_a_special_token_is_found_inside(marks: Marks) -> None:
    shown = marks.inside({"name": "x<|end|>y"})["name"]
    assert "<|end|>" not in shown
    assert marks.pieces(shown) == [("x", True), ("<|end|>", False), ("y", True)]


@pytest.mark.parametrize("broken", ["cut", "closed", "foreign"])
def test_what_is_no_whole_stand_in_stays_the_templates(marks: Marks, broken: str) -> None:
    mark, other = marks.whole("a").strip(), Marks(SpecialTexts(["<|end|>"])).whole("a").strip()
    text = {"cut": mark[1:], "closed": mark[:-1], "foreign": other}[broken]
    assert marks.pieces(text) == [(text, True)]
    assert marks.kept(text) == [False]
    assert marks.pieces(text + mark)[-2:] == [("a", False), ("", True)]
