"""The documentation names the families that tests try."""

from guards.model.families import VLLM_FAMILIES
from tests.families_table import PAGE, table
from tests.models import VLLM_CLASSES


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(), "say `python -m tests.families_table`"


def test_every_class_of_vllm_is_of_a_family() -> None:
    assert {*VLLM_CLASSES.values()} == set(VLLM_FAMILIES)
