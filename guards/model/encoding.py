"""Text to token ids, in one place, so that examples are calibrated exactly as the server will see them.

A *frame* is what surrounds a text: "chat" (the model's chat template, one user turn), "bare" (the text alone), or a
template with `{text}` such as "Q: {text}\\nA:". A guard fitted on last tokens is bound to its frames.

Control tokens that a text spells out ("<|end|>") stay plain text everywhere: a caller must not be able to write turns
into a conversation. Special tokens are control, and so are added ones that the template writes or that end a turn.
"""

import copy
import hashlib
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache, partial
from inspect import signature
from types import MappingProxyType
from typing import Any

from jinja2.meta import find_undeclared_variables
from tokenizers import AddedToken

from guards.core.text import is_encodable
from guards.errors import DataError, PromptRefusedError, TemplateTimeError, UnsupportedModelError
from guards.model.deadline import TimeUpError, ended_after
from guards.model.marks import Marks, Piece, SpecialTexts
from guards.model.openings import Opening, Rendered, find_openings
from guards.model.templates import Form, find_forms, in_form, read_templates

logger = logging.getLogger("skillguard.guards")

CHAT_FRAME = "chat"
BARE_FRAME = "bare"
_TEMPLATE_GLOBALS = frozenset({"messages", "raise_exception", "strftime_now"})
_PROBE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}},
}
RENDER_SECONDS = 3.0
"""For one rendering of the chat template, which takes a thousandth of that."""
_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
_NO_TOKEN = "\u2000\ue000\u2000"
"""Stands for a text where the tokens around it are of interest: no special token's spelling, nor part of one."""


def template_sha256(template: str | None) -> str | None:
    """Digest of a chat template's source, None without one."""
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


def check_frame(frame: str) -> str:
    """Returns the frame. Raises DataError when it is none of "chat", "bare" and a template with one {text}."""
    if not is_encodable(frame):
        raise DataError(f"got frame {frame!a}, wanted text in UTF-8, without half a character")
    if frame in (CHAT_FRAME, BARE_FRAME) or frame.count("{text}") == 1:
        return frame
    raise DataError(f"got frame {frame!r}, wanted 'chat', 'bare' or a template holding {{text}} once")


def frame_text(frame: str, text: str) -> str:
    """A text in a frame other than "chat". Raises DataError like `check_frame`."""
    return text if frame == BARE_FRAME else check_frame(frame).replace("{text}", text)


class TextCodec:
    """A tokenizer with the rules above, safe to call from several threads.

    `tokenizer` is a transformers fast tokenizer; whether it parses special tokens is a switch inside of it, so that two
    calls must not overlap.
    """

    def __init__(
        self, tokenizer: Any, variables: Mapping[str, Any] = _NO_VARIABLES, ends: Collection[int] = frozenset()
    ) -> None:
        """`variables` are what the chat template sees besides, in every conversation; `ends` end a turn.

        Raises PromptRefusedError, and UnsupportedModelError for templates that cannot be used.
        """
        self.tokenizer = tokenizer
        self.variables = dict(variables)
        self.require_free(self.variables)
        self._templates = read_templates(tokenizer.chat_template)
        self._written = "\n".join([*self._templates.sources.values(), *self._renderings()])
        self._lock = threading.Lock()
        control = {token.content: token for token in self._control_tokens(ends)}
        self._special: dict[str, Any] = control  # more than all_special_tokens, which leaves out Llama 3's headers
        self._encoder = _with_special(tokenizer, [token for token in control.values() if not token.special])
        self._unknown: str | None = tokenizer.unk_token
        self.special_ids = frozenset(
            int(tokenizer.convert_tokens_to_ids(text)) for text in control if text != self._unknown
        )
        self._special_texts = SpecialTexts(control)
        # Conversations of one shape differ in their texts alone.
        self._specials_of = lru_cache(maxsize=128)(lambda text: tuple(self._specials(self._encode_trusted(text))))

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, or bytes where the vocabulary is of these."""
        return max(map(len, self.tokenizer.get_vocab()))

    def on_day(self, day: datetime) -> "TextCodec":
        """The same, whose chat template writes a given day where it writes today's."""
        dated = copy.copy(self)
        dated.variables = {**self.variables, "strftime_now": day.strftime}
        return dated

    def _control_tokens(self, ends: Collection[int]) -> list[Any]:
        """Added tokens that no text of a caller's makes: special ones, those that end a turn, and those that the
        template writes, whatever the tokenizer's file calls them."""
        return [
            token
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or index in ends or (token.content.strip() and self.writes(token.content))
        ]

    def writes(self, token: str) -> bool:
        """Whether the chat template writes a token, or may: it is in its source or in a rendering."""
        return token in self._written

    def _renderings(self) -> Iterator[str]:
        """Conversations of the template, some of whose tokens it may put together as it runs.

        Raises UnsupportedModelError where one does not come to an end.
        """
        if self._templates.default is None:
            return
        asked = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
        for messages, tools in ((asked, ()), (asked[1:], ()), (asked[1:2], ()), (asked[1:2], (_PROBE_TOOL,))):
            for form in (Form.TEXT, Form.PARTS):
                try:
                    yield self._render_as([in_form(message, form) for message in messages], tools)
                except TemplateTimeError as error:
                    raise UnsupportedModelError(
                        f"the model's chat template takes more than {RENDER_SECONDS:g} seconds for four short "
                        "messages; wanted one that ends at once: give the model's folder another"
                    ) from error
                except PromptRefusedError:
                    continue

    @cached_property
    def _forms(self) -> Mapping[str, Form]:
        if self._templates.default is None:
            return {}
        forms = find_forms(self._render_as)
        if lost := [role for role, form in forms.items() if form is Form.LOST]:
            what = "so chat is not served" if "user" in lost else "so messages of these roles are refused"
            logger.warning("the chat template leaves out the text of %s in either form, %s", " and ".join(lost), what)
        return forms

    @cached_property
    def openings(self) -> tuple[Opening, ...]:
        """How the chat template opens messages, see `guards.model.openings`."""
        if not self.has_chat_template:
            return ()
        return find_openings(self, _WithTools(self)) if self._templates.several else find_openings(self)

    @cached_property
    def template_names(self) -> frozenset[str]:
        """What the chat template reads of its surroundings, such as `enable_thinking`."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        names: set[str] = set()
        for source in self._templates.sources.values():
            names |= find_undeclared_variables(_compile_jinja_template(source).environment.parse(source))
        return frozenset(names)

    def require_free(self, variables: Mapping[str, Any]) -> None:
        """Raises PromptRefusedError for a variable by whose name something else goes to the template, or no text."""
        if not is_encodable(variables):
            raise PromptRefusedError("a variable of the chat template holds half a character: write whole ones")
        taken = {*signature(self.tokenizer.apply_chat_template).parameters, *self.tokenizer.special_tokens_map}
        if found := sorted((taken | _TEMPLATE_GLOBALS) & variables.keys()):
            raise PromptRefusedError(f"the chat template's {found[0]!r} is not the caller's to set: leave it out")

    def locate(self, frame: str, text: str, part: str) -> tuple[int, int] | None:
        """The tokens of a text in a frame, first to past the last, that lie within a part of the text.

        None where the frame changes the text, or a token spans the part's edge on both sides.
        """
        if frame == CHAT_FRAME:
            framed = self.rendered([{"role": "user", "content": text}])
        else:
            whole = check_frame(frame).replace("{text}", text) if frame != BARE_FRAME else text
            with self._lock:
                encoded = self._encoder(whole, split_special_tokens=True, return_offsets_mapping=True)
            framed = Rendered(whole, tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))
        start = framed.text.find(part)
        inside = [i for i, (low, high) in enumerate(framed.spans) if start <= low < high <= start + len(part)]
        if start < 0 or not inside or framed.ids != self.encode_frame(frame, text):
            return None
        return inside[0], inside[-1] + 1

    def rendered(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """A conversation of trusted texts, with the opening of an answer. Raises PromptRefusedError."""
        text = self._render(messages, tools)
        with self._lock:
            encoded = self._encoder(
                text, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
            )
        return Rendered(text, tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))

    @property
    def has_chat_template(self) -> bool:
        """Whether the frame "chat" exists for this model: not where its template leaves out what users say."""
        return self._templates.default is not None and self._forms["user"] is not Form.LOST

    @property
    def template_sha256(self) -> str | None:
        """Digest of the chat template's source, None where no chat is served."""
        return template_sha256(self._templates.default) if self.has_chat_template else None

    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        """A bare text; `opened`: with the opening token where the tokenizer adds one."""
        with self._lock:
            encoded = self._encoder(
                text, add_special_tokens=opened, split_special_tokens=True, return_attention_mask=False
            )
        return tuple(encoded["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    def spell(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the vocabulary writes it; empty for an id that it does not use."""
        return tuple(token or "" for token in self.tokenizer.convert_ids_to_tokens(list(token_ids)))

    def encode_part(self, text: str) -> tuple[int, ...]:
        """A piece of an answer, of which special tokens may be part. Not for a prompt: nobody's text makes turns."""
        return self._encode_trusted(text)

    def encode_frame(self, frame: str, text: str) -> tuple[int, ...]:
        """A text in a frame. Raises DataError (PromptRefusedError for "chat" without a template)."""
        if frame == CHAT_FRAME:
            return self.encode_chat([{"role": "user", "content": text}])
        return self.encode_text(frame_text(frame, text))

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the chat template shows tools, calls and their results: some leave out what they do not know."""
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
            shown = self._render([asked, called, answered], [{"type": "function", "function": about}])
        except PromptRefusedError:
            return False
        return all(f"probe000{index}" in shown for index in (1, 3, 4, 5, 6, 7))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] = _NO_VARIABLES,
        *,
        answered: bool = True,
    ) -> tuple[int, ...]:
        """A conversation in the chat template. `answered`: with the opening of the assistant's turn.

        Messages and tools are what transformers' templates take; calls' arguments are objects. `variables` are what the
        template sees beside them, in the place of its globals of the same name. Raises PromptRefusedError when the
        model has no template or the template refuses the conversation.
        """
        if self._templates.default is None:
            raise PromptRefusedError("this model has no chat template: use /v1/completions, or another frame")
        if not self.has_chat_template:
            raise PromptRefusedError(
                "this model's chat template leaves out what users say, as text and as parts: use /v1/completions, or "
                "another frame; the model's folder may need another chat template"
            )
        render = partial(self._render, variables=variables, answered=answered)
        marks = Marks(self._special_texts)
        inner, contents = [_marked(message, marks) for message in messages], []
        for message in inner:
            copied = message["role"] != "tool"  # results are often written as JSON, which a whole mark would escape
            contents.append({**message, "content": marks.whole(message["content"])} if copied else message)
        marked_tools = marks.inside(tools)
        # What a variable spells is a caller's text, like a tool's: its special tokens are none.
        render_marked = partial(self._render, variables=marks.inside(variables), answered=answered)
        pieces = marks.pieces(template := render_marked(contents, marked_tools))
        self._require_kept(messages, marks.kept(template))
        ids = self._encode_trusted(rendered := render(messages, tools))
        spelled = self._unknown is not None and any(self._unknown in message["content"] for message in messages)
        if not spelled and not marks.any_inside:
            given = any(not callable(each) for each in variables.values())
            structured = bool(tools) or given or any(message.keys() - {"role", "content"} for message in messages)
            safe = self._specials(self._encode_pieces(pieces)) if structured else self._specials_around(pieces)
            if self._specials(ids) == safe:
                return ids
        if marks.any_inside:
            filled = "".join(text for text, _ in marks.pieces(render_marked(inner, marked_tools)))
            if filled != rendered:
                raise PromptRefusedError(
                    "tools, their calls or template variables spell a special token where the chat template does not "
                    "copy it: reword them"
                )
        return self._encode_pieces(pieces)

    def _require_kept(self, messages: Sequence[Mapping[str, Any]], kept: Sequence[bool]) -> None:
        """Raises PromptRefusedError where the template leaves out a message's text, which nobody would judge.

        Not of what the model said beside calls of tools, which templates are known to drop.
        """
        places = [index for index, message in enumerate(messages) if message["role"] != "tool"]
        for index, there in zip(places, kept, strict=True):
            message = messages[index]
            lost = not there or self._forms.get(message["role"]) is Form.LOST
            if lost and message["content"].strip() and not message.get("tool_calls"):
                raise PromptRefusedError(
                    f"the model's chat template leaves out the text of messages[{index}] ({message['role']}): leave "
                    "the message out, or say it in a user's message"
                )

    def _encode_trusted(self, text: str) -> tuple[int, ...]:
        with self._lock:
            encoded = self._encoder(
                text, add_special_tokens=False, split_special_tokens=False, return_attention_mask=False
            )
        return tuple(encoded["input_ids"])

    def _specials(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self.special_ids]

    def _specials_around(self, pieces: Sequence[Piece]) -> list[int]:
        """Special tokens of a rendering whose texts hold none."""
        return list(self._specials_of("".join(text if trusted else _NO_TOKEN for text, trusted in pieces)))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] = _NO_VARIABLES,
        answered: bool = True,
    ) -> str:
        shaped = [in_form(message, self._forms.get(message["role"], Form.TEXT)) for message in messages]
        return self._render_as(shaped, tools, variables, answered)

    def _render_as(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] = _NO_VARIABLES,
        answered: bool = True,
    ) -> str:
        try:
            with ended_after(RENDER_SECONDS):
                rendered = self.tokenizer.apply_chat_template(
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

    def _encode_pieces(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """Token ids of adjoining pieces; special tokens count only in the pieces marked True.

        Plain text is joined across pieces before it is encoded: a tokenizer splits at special tokens only, and drops
        the whitespace next to those that say so.
        """
        ids: list[int] = []
        plain, drop_whitespace = "", False

        def flush() -> None:
            nonlocal plain
            if plain:
                with self._lock:
                    encoded = self._encoder(
                        plain, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
                    )
                ids.extend(encoded["input_ids"])
                plain = ""

        for text, trusted in pieces:
            for index, part in enumerate(self._special_texts.pattern.split(text) if trusted else [text]):
                if index % 2 == 0:
                    plain += part.lstrip() if drop_whitespace and not plain else part
                    continue
                token = self._special[part]
                if token.lstrip:
                    plain = plain.rstrip()
                flush()
                ids.append(int(self.tokenizer.convert_tokens_to_ids(part)))
                drop_whitespace = token.rstrip
        flush()
        return tuple(ids)


class _WithTools:
    """The template that conversations with tools are rendered by."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self.special_ids = codec.special_ids

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        return self._codec.rendered(messages, (_PROBE_TOOL,))


def _with_special(tokenizer: Any, tokens: Sequence[Any]) -> Any:
    """The tokenizer, or a copy of it that takes these added tokens for special ones; decoding stays the original's."""
    if not tokens:
        return tokenizer
    copied = copy.deepcopy(tokenizer)
    copied.backend_tokenizer.add_special_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=True,
            )
            for token in tokens
        ]
    )
    return copied


def _marked(message: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
    """A message with stand-ins in all but its role and, where the template copies it, its text."""
    kept = {"role"} if message["role"] == "tool" else {"role", "content"}
    return {key: value if key in kept else marks.inside(value) for key, value in message.items()}
