"""What a model's chat template is, and what it does with what is said, found out by rendering probes.

A template is a program of the model's: it may want a message's content as a text or as parts, and may leave out what it
was not written for. A text that it leaves out would reach neither the model nor a guard.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from guards.errors import PromptRefusedError, UnsupportedModelError

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of templates, where a model has several: transformers takes the second where tools are given."""
ROLES = ("user", "system", "assistant")
_WORDS = 800
"""Of a probe: more than a template that cuts texts would leave."""

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]


class Form(StrEnum):
    """How a template wants a message's content."""

    TEXT = "text"
    PARTS = "parts"
    LOST = "lost"
    """It leaves the text out, or a part of it, in either form."""


@dataclass(frozen=True)
class Templates:
    """A model's templates by name; none where it has no chat template."""

    sources: Mapping[str, str]

    @property
    def default(self) -> str | None:
        """What conversations are rendered by, but for those with tools where there is another."""
        return self.sources.get(DEFAULT)

    @property
    def several(self) -> bool:
        """Whether conversations with tools are rendered by another."""
        return TOOL_USE in self.sources


def read_templates(said: Any) -> Templates:
    """The templates of a tokenizer: one text, or several by name.

    Raises UnsupportedModelError where none of several is the default, or one is no text.
    """
    named = {} if said is None else {DEFAULT: said} if isinstance(said, str) else said
    if not isinstance(named, Mapping) or not all(isinstance(each, str) for each in named.values()):
        raise UnsupportedModelError(
            f"the tokenizer's chat_template: got a {type(said).__name__}, wanted a text, or texts by name"
        )
    if named and DEFAULT not in named:
        raise UnsupportedModelError(
            f"the tokenizer has chat templates named {', '.join(map(repr, sorted(named)))} and none named 'default': "
            "in the model's folder, name the one to use 'default' (in tokenizer_config.json), or save it as "
            "chat_template.jinja"
        )
    return Templates(dict(named))


def in_form(message: Message, form: Form) -> dict[str, Any]:
    """A message with its content, a text, in the form that the template wants."""
    if form is not Form.PARTS:
        return dict(message)
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def find_forms(render: Render) -> dict[str, Form]:
    """The form of each role's content; TEXT also where the template refuses a role by an error of its own."""
    forms: dict[str, Form] = {}
    for role in ROLES:
        tried = (Form.TEXT, Form.PARTS)
        forms[role] = next((form for form in tried if _comes_back(render, forms, role, form)), Form.LOST)
        if forms[role] is Form.LOST and all(_refuses(render, forms, role, form) for form in tried):
            forms[role] = Form.TEXT
    return forms


def _probe(role: str) -> list[str]:
    return [f"{role[0]}q{number:03d}" for number in range(_WORDS)]


def _rendered(render: Render, forms: Mapping[str, Form], role: str, form: Form) -> str:
    """A conversation in which the role has its say. The last line of a text may be cut by templates as well."""
    conversations = {"user": ["user"], "system": ["system", "user"], "assistant": ["user", "assistant", "user"]}
    shapes = {**forms, role: form}
    messages = []
    for each in conversations[role]:
        words = _probe(each)
        text = "\n".join((" ".join(words[: _WORDS // 2]), " ".join(words[_WORDS // 2 :])))
        messages.append(in_form({"role": each, "content": text}, shapes[each]))
    return render(messages)


def _comes_back(render: Render, forms: Mapping[str, Form], role: str, form: Form) -> bool:
    try:
        shown = _rendered(render, forms, role, form).casefold()
    except PromptRefusedError:
        return False
    # A list that a template writes as it is would hold the words too, amid its own quotes and braces.
    written_as_list = form is Form.PARTS and ("'type'" in shown or '"type"' in shown)
    return not written_as_list and all(word in shown for word in _probe(role))


def _refuses(render: Render, forms: Mapping[str, Form], role: str, form: Form) -> bool:
    try:
        _rendered(render, forms, role, form)
    except PromptRefusedError:
        return True
    return False
