"""Text to token ids, in one place, so that examples are calibrated exactly as the server will see them.

Control tokens that a text spells out ("<|end|>") stay plain text everywhere: a caller must not be able to write turns
into a conversation. Special tokens are control, and so are added ones that the template writes or that end a turn.
"""

import copy
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache, partial
from typing import Any

from tokenizers import AddedToken

from guards.errors import PromptRefusedError
from guards.model.frames import CHAT_FRAME, frame_text
from guards.model.marks import Marks, Piece, SpecialTexts
from guards.model.openings import Opening, Rendered, find_openings
from guards.model.rendering import NO_VARIABLES, PROBE_TOOL, ChatTemplate

_NO_TOKEN = "\u2000\ue000\u2000"
"""Stands for a text where the tokens around it are of interest: no special token's spelling, nor part of one."""


class TextCodec:
    """A tokenizer with the rules above, safe to call from several threads.

    `tokenizer` is a transformers fast tokenizer; whether it parses special tokens is a switch inside of it, so that two
    calls must not overlap.
    """

    def __init__(
        self, tokenizer: Any, variables: Mapping[str, Any] = NO_VARIABLES, ends: Collection[int] = frozenset()
    ) -> None:
        """`variables` are what the chat template sees besides, in every conversation; `ends` end a turn.

        Raises PromptRefusedError, and UnsupportedModelError for templates that cannot be used.
        """
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer, variables)
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
        dated.chat = self.chat.on_day(day)
        return dated

    def _control_tokens(self, ends: Collection[int]) -> list[Any]:
        """Added tokens that no text of a caller's makes: special ones, those that end a turn, and those that the
        template writes, whatever the tokenizer's file calls them."""
        return [
            token
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or index in ends or (token.content.strip() and self.chat.writes(token.content))
        ]

    @cached_property
    def openings(self) -> tuple[Opening, ...]:
        """How the chat template opens messages, see `guards.model.openings`."""
        if not self.chat.serves:
            return ()
        return find_openings(self, _WithTools(self)) if self.chat.several else find_openings(self)

    def locate(self, frame: str, text: str, part: str) -> tuple[int, int] | None:
        """The tokens of a text in a frame, first to past the last, that lie within a part of the text.

        None where the frame changes the text, or a token spans the part's edge on both sides.
        """
        if frame == CHAT_FRAME:
            framed = self.rendered([{"role": "user", "content": text}])
        else:
            whole = frame_text(frame, text)
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
        text = self.chat.render(messages, tools)
        with self._lock:
            encoded = self._encoder(
                text, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
            )
        return Rendered(text, tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))

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

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] = NO_VARIABLES,
        *,
        answered: bool = True,
    ) -> tuple[int, ...]:
        """A conversation in the chat template. `answered`: with the opening of the assistant's turn.

        Messages and tools are what transformers' templates take; calls' arguments are objects. `variables` are what the
        template sees beside them, in the place of its globals of the same name. Raises PromptRefusedError when the
        model has no template or the template refuses the conversation.
        """
        self.chat.require()
        render = partial(self.chat.render, variables=variables, answered=answered)
        marks = Marks(self._special_texts)
        inner, contents = [_marked(message, marks) for message in messages], []
        for message in inner:
            copied = message["role"] != "tool"  # results are often written as JSON, which a whole mark would escape
            contents.append({**message, "content": marks.whole(message["content"])} if copied else message)
        marked_tools = marks.inside(tools)
        # What a variable spells is a caller's text, like a tool's: its special tokens are none.
        render_marked = partial(self.chat.render, variables=marks.inside(variables), answered=answered)
        pieces = marks.pieces(template := render_marked(contents, marked_tools))
        self.chat.require_kept(messages, marks.kept(template))
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
        return self._codec.rendered(messages, (PROBE_TOOL,))


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
