"""Text to token ids, in one place, so that examples are calibrated exactly as the server will see them.

A *frame* is what surrounds a text: "chat" (the model's chat template, one user turn), "bare" (the text alone), or a
template with `{text}` such as "Q: {text}\\nA:". A guard fitted on last tokens is bound to its frames.

Special tokens that a text spells out ("<|end|>") stay plain text everywhere: a caller must not be able to write
turns into a conversation.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from inspect import signature
from types import MappingProxyType
from typing import Any

from jinja2.meta import find_undeclared_variables

from guards.core.text import is_encodable
from guards.errors import DataError, PromptRefusedError
from guards.model.marks import Marks, Piece, SpecialTexts
from guards.model.openings import Opening, Rendered, find_openings

CHAT_FRAME = "chat"
BARE_FRAME = "bare"
_TEMPLATE_GLOBALS = frozenset({"messages", "raise_exception", "strftime_now"})
_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


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

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] = _NO_VARIABLES) -> None:
        """`variables` are what the chat template sees besides, in every conversation. Raises PromptRefusedError."""
        self.tokenizer = tokenizer
        self.variables = dict(variables)
        self.require_free(self.variables)
        self._lock = threading.Lock()
        special = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special: dict[str, Any] = special  # more than all_special_tokens, which leaves out Llama 3's headers
        self._unknown: str | None = tokenizer.unk_token
        self.special_ids = frozenset(
            int(tokenizer.convert_tokens_to_ids(text)) for text in special if text != self._unknown
        )
        self._special_texts = SpecialTexts(special)

    @cached_property
    def openings(self) -> tuple[Opening, ...]:
        """How the chat template opens messages, see `guards.model.openings`."""
        return find_openings(self) if self.has_chat_template else ()

    @cached_property
    def template_names(self) -> frozenset[str]:
        """What the chat template reads of its surroundings, such as `enable_thinking`."""
        source = self.tokenizer.chat_template
        if not isinstance(source, str):
            return frozenset()
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = _compile_jinja_template(source)
        return frozenset(find_undeclared_variables(template.environment.parse(source)))

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
                encoded = self.tokenizer(whole, split_special_tokens=True, return_offsets_mapping=True)
            framed = Rendered(whole, tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))
        start = framed.text.find(part)
        inside = [i for i, (low, high) in enumerate(framed.spans) if start <= low < high <= start + len(part)]
        if start < 0 or not inside or framed.ids != self.encode_frame(frame, text):
            return None
        return inside[0], inside[-1] + 1

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """A conversation of trusted texts, with the opening of an answer. Raises PromptRefusedError."""
        text = self._render(messages, ())
        with self._lock:
            encoded = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
            )
        return Rendered(text, tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))

    @property
    def has_chat_template(self) -> bool:
        """Whether the frame "chat" exists for this model."""
        return self.tokenizer.chat_template is not None

    @property
    def template_sha256(self) -> str | None:
        """Digest of the chat template's source."""
        return template_sha256(self.tokenizer.chat_template)

    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        """A bare text; `opened`: with the opening token where the tokenizer adds one."""
        with self._lock:
            encoded = self.tokenizer(
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
        if not self.has_chat_template:
            raise PromptRefusedError("this model has no chat template: use /v1/completions, or another frame")
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
        ids = self._encode_trusted(rendered := render(messages, tools))
        spelled = self._unknown is not None and any(self._unknown in message["content"] for message in messages)
        if not spelled and not marks.any_inside:
            given = any(not callable(each) for each in variables.values())
            structured = bool(tools) or given or any(message.keys() - {"role", "content"} for message in messages)
            safe = self._encode_pieces(pieces) if structured else self._encode_trusted(template)
            if self._specials(ids) == self._specials(safe):
                return ids
        if marks.any_inside:
            filled = "".join(text for text, _ in marks.pieces(render_marked(inner, marked_tools)))
            if filled != rendered:
                raise PromptRefusedError(
                    "tools, their calls or template variables spell a special token where the chat template does not "
                    "copy it: reword them"
                )
        return self._encode_pieces(pieces)

    def _encode_trusted(self, text: str) -> tuple[int, ...]:
        with self._lock:
            encoded = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, return_attention_mask=False
            )
        return tuple(encoded["input_ids"])

    def _specials(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self.special_ids]

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] = _NO_VARIABLES,
        answered: bool = True,
    ) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=answered,
                **{**self.variables, **variables},
            )
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
                    encoded = self.tokenizer(
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


def _marked(message: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
    """A message with stand-ins in all but its role and, where the template copies it, its text."""
    kept = {"role"} if message["role"] == "tool" else {"role", "content"}
    return {key: value if key in kept else marks.inside(value) for key, value in message.items()}
