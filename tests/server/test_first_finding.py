"""However much is wrong with a body, one finding of each field is made: a caller mends one thing at a time."""

import pytest
from pydantic import TypeAdapter, ValidationError

from server.openai import ChatRequest, CheckRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from server.openai.body import Body, TokenId, all_bodies
from server.openai.responses.request import ResponsesRequest

MANY = 500
BODIES = [each for each in all_bodies() if each is not Body and not each.__abstractmethods__]
WRONG: tuple[object, ...] = (None, -1, 1.5, "", "x", {}, {"x": {}}, [])


def _findings(body: type[Body], said: object) -> list[tuple[int | str, ...]]:
    try:
        body.model_validate(said)
    except ValidationError as error:
        return [each["loc"] for each in error.errors()]
    return []


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_list_of_wrong_items_makes_few_findings(body: type[Body]) -> None:
    for name in body.field_names():
        for wrong in WRONG:
            for said in ([wrong] * MANY, {str(number): wrong for number in range(MANY)}):
                found = [where for where in _findings(body, {name: said}) if where[:1] == (name,)]
                assert len(found) <= 16, (name, wrong, len(found))


@pytest.mark.parametrize(
    "body", [ChatRequest, CompletionRequest, ResponsesRequest, CheckRequest, TokenizeRequest, DetokenizeRequest]
)
def test_of_unknown_names_the_first_is_found(body: type[Body]) -> None:
    found = _findings(body, {f"unknown{number}": 1 for number in range(MANY)})
    assert [where for where in found if str(where[0]).startswith("unknown")] == [("unknown0",)]


def test_a_list_as_pydantic_has_it_finds_all() -> None:
    """Positive control."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[TokenId]).validate_python([-1] * MANY)
    assert caught.value.error_count() == MANY
