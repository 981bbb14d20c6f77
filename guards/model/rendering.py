"""A model's chat template at work: conversations to text, under a deadline, and what the template leaves out.

A template is a program of the model's. It is rendered by transformers, in its sandbox.
"""

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from inspect import signature
from types import MappingProxyType
from typing import Any

from jinja2.meta import find_undeclared_variables

from guards.core.text import is_encodable
from guards.errors import PromptRefusedError, TemplateTimeError, UnsupportedModelError
from guards.model.deadline import TimeUpError, ended_after
from guards.model.templates import Form, find_forms, in_form, read_templates

logger = logging.getLogger("skillguard.guards")

RENDER_SECONDS = 3.0
"""For one rendering of the chat template, which takes a thousandth of that."""
NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
PROBE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}},
}
_GLOBALS = frozenset({"messages", "raise_exception", "strftime_now"})


def template_sha256(template: str | None) -> str | None:
    """Digest of a chat template's source, None without one."""
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


class ChatTemplate:
    """What a tokenizer's chat template makes of conversations; a model may have none."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] = NO_VARIABLES) -> None:
        """`variables` are what the template sees besides, in every conversation.

        Raises PromptRefusedError, and UnsupportedModelError for templates that cannot be used.
        """
        self._tokenizer = tokenizer
        self.variables = dict(variables)
        self.require_free(self.variables)
        self._templates = read_templates(tokenizer.chat_template)
        self._written = "\n".join([*self._templates.sources.values(), *self._renderings()])

    @property
    def missing(self) -> bool:
        """Whether the model has none."""
        return self._templates.default is None

    @property
    def several(self) -> bool:
        """Whether conversations with tools are rendered by another template."""
        return self._templates.several

    @property
    def serves(self) -> bool:
        """Whether chats can be had: not where the template leaves out what users say."""
        return not self.missing and self.forms["user"] is not Form.LOST

    @property
    def sha256(self) -> str | None:
        """Digest of the template's source, None where no chat is served."""
        return template_sha256(self._templates.default) if self.serves else None

    def on_day(self, day: datetime) -> "ChatTemplate":
        """The same, which writes a given day where it writes today's."""
        dated = copy.copy(self)
        dated.variables = {**self.variables, "strftime_now": day.strftime}
        return dated

    def writes(self, token: str) -> bool:
        """Whether the template writes a token, or may: it is in its source or in a rendering."""
        return token in self._written

    def require_free(self, variables: Mapping[str, Any]) -> None:
        """Raises PromptRefusedError for a variable by whose name something else goes to the template, or no text."""
        if not variables:
            return
        if not is_encodable(variables):
            raise PromptRefusedError("a variable of the chat template holds half a character: write whole ones")
        taken = {*signature(self._tokenizer.apply_chat_template).parameters, *self._tokenizer.special_tokens_map}
        if found := sorted((taken | _GLOBALS) & variables.keys()):
            raise PromptRefusedError(f"the chat template's {found[0]!r} is not the caller's to set: leave it out")

    @cached_property
    def names(self) -> frozenset[str]:
        """What the template reads of its surroundings, such as `enable_thinking`."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        names: set[str] = set()
        for source in self._templates.sources.values():
            names |= find_undeclared_variables(_compile_jinja_template(source).environment.parse(source))
        return frozenset(names)

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """By role how the template wants a message's content."""
        if self.missing:
            return {}
        forms = find_forms(self._render)
        if lost := [role for role, form in forms.items() if form is Form.LOST]:
            what = "so chat is not served" if "user" in lost else "so messages of these roles are refused"
            logger.warning("the chat template leaves out the text of %s in either form, %s", " and ".join(lost), what)
        return forms

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template shows tools, calls and their results: some leave out what they do not know."""
        call = {
            "id": "probe0002",
            "type": "function",
            "function": {"name": "probe0003", "arguments": {"a": "probe0004"}},
        }
        asked = {"role": "user", "content": "probe0001"}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        answered = {"role": "tool", "content": "probe0005", "tool_call_id": "probe0002"}
        about = {"name": "probe0006", "description": "probe0007", "parameters": {"type": "object", "properties": {}}}
        try:
            shown = self.render([asked, called, answered], [{"type": "function", "function": about}])
        except PromptRefusedError:
            return False
        return all(f"probe000{index}" in shown for index in (1, 3, 4, 5, 6, 7))

    def require(self) -> None:
        """Raises PromptRefusedError where no chat can be had."""
        if self.missing:
            raise PromptRefusedError("this model has no chat template: use /v1/completions, or another frame")
        if not self.serves:
            raise PromptRefusedError(
                "this model's chat template leaves out what users say, as text and as parts: use /v1/completions, or "
                "another frame; the model's folder may need another chat template"
            )

    def require_kept(self, messages: Sequence[Mapping[str, Any]], kept: Sequence[bool]) -> None:
        """Raises PromptRefusedError where the template leaves out a message's text, which nobody would judge.

        `kept` says it of each message that is no tool's result. Not of what the model said beside calls of tools, which
        templates are known to drop.
        """
        places = [index for index, message in enumerate(messages) if message["role"] != "tool"]
        for index, there in zip(places, kept, strict=True):
            message = messages[index]
            lost = not there or self.forms.get(message["role"]) is Form.LOST
            if lost and message["content"].strip() and not message.get("tool_calls"):
                raise PromptRefusedError(
                    f"the model's chat template leaves out the text of messages[{index}] ({message['role']}): leave "
                    "the message out, or say it in a user's message"
                )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] = NO_VARIABLES,
        answered: bool = True,
    ) -> str:
        """A conversation, each message in the form that the template wants. `answered`: with the opening of an answer.

        Raises PromptRefusedError where the template does, and TemplateTimeError.
        """
        shaped = [in_form(message, self.forms.get(message["role"], Form.TEXT)) for message in messages]
        return self._render(shaped, tools, variables, answered)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] = NO_VARIABLES,
        answered: bool = True,
    ) -> str:
        try:
            with ended_after(RENDER_SECONDS):
                rendered = self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=answered,
                    **{**self.variables, **variables},
                )
        except TimeUpError as error:
            raise TemplateTimeError(
                f"the model's chat template takes more than {RENDER_SECONDS:g} seconds for these messages"
            ) from error
        except Exception as error:  # a template is a program: it raises what it likes
            raise PromptRefusedError(f"the model's chat template refuses these messages: {error}") from error
        return str(rendered)

    def _renderings(self) -> Iterator[str]:
        """Conversations of the template, some of whose tokens it may put together as it runs.

        Raises UnsupportedModelError where one does not come to an end.
        """
        if self.missing:
            return
        asked = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
        for messages, tools in ((asked, ()), (asked[1:], ()), (asked[1:2], ()), (asked[1:2], (PROBE_TOOL,))):
            for form in (Form.TEXT, Form.PARTS):
                try:
                    yield self._render([in_form(message, form) for message in messages], tools)
                except TemplateTimeError as error:
                    raise UnsupportedModelError(
                        f"the model's chat template takes more than {RENDER_SECONDS:g} seconds for four short "
                        "messages; wanted one that ends at once: give the model's folder another"
                    ) from error
                except PromptRefusedError:
                    continue
