"""The table of request options in the documentation is the code's."""

from server.engines.request import CALLS_TOOLS, HONOURED
from server.openai import ChatRequest, CompletionRequest
from server.openai.option_table import PAGE, rows, written
from server.openai.responses.request import ResponsesRequest


def test_the_page_is_up_to_date() -> None:
    """Else run `python -m server.openai.option_table`."""
    page = PAGE.read_text()
    assert written(page) == page


def test_every_field_of_a_request_has_a_row() -> None:
    found = {row[0].strip("`"): row for row in rows()}
    bodies = (ChatRequest, CompletionRequest, ResponsesRequest)
    assert found.keys() == {name for body in bodies for name in body.model_fields}
    assert found["temperature"][1:] == ("0 to 2", "0 to 2", "0 to 2", "yes", "yes", "the model's")
    assert found["max_output_tokens"][1:] == ("-", "-", "from 1", "yes", "yes", "the model's")
    assert found["logprobs"][1:3] == ("true or false", "0 to 20")
    assert found["prompt"][1] == "-"
    assert HONOURED.keys() > CALLS_TOOLS
    assert found["tools"][4:6] == ("no", "yes")
