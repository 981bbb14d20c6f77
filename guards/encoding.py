"""Text to token ids, in one place, so that examples are calibrated exactly as the server will see them.

A *frame* is what surrounds a text: "chat" (the model's chat template, one user turn), "bare" (the text alone), or a
template with `{text}` such as "Q: {text}\\nA:". A guard fitted on last tokens is bound to its frames.

Special tokens that a text spells out ("<|end|>") stay plain text everywhere: a caller must not be able to write
turns into a conversation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from guards.errors import DataError
from guards.identity import template_sha256

CHAT_FRAME = "chat"
BARE_FRAME = "bare"
_MARK = "\ue000skillguard{index}\ue001"
"""Stands in for a message's text while the template is rendered; private-use characters, so no text holds it."""


class PromptRefusedError(DataError):
    """The chat template, or the lack of one, does not allow this conversation."""


def check_frame(frame: str) -> str:
    """Returns the frame. Raises DataError when it is none of "chat", "bare" and a template with one {text}."""
    if frame in (CHAT_FRAME, BARE_FRAME) or frame.count("{text}") == 1:
        return frame
    raise DataError(f"got frame {frame!r}, wanted 'chat', 'bare' or a template holding {{text}} once")


class TextCodec:
    """A tokenizer with the rules above. `tokenizer` is a transformers fast tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = tuple(sorted(map(str, tokenizer.all_special_tokens), key=len, reverse=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether the frame "chat" exists for this model."""
        return self.tokenizer.chat_template is not None

    @property
    def template_sha256(self) -> str | None:
        """Digest of the chat template's source."""
        return template_sha256(self.tokenizer.chat_template)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """A bare text, with the opening token where the tokenizer adds one."""
        encoded = self.tokenizer(text, split_special_tokens=True, return_attention_mask=False)
        return tuple(encoded["input_ids"])

    def encode_frame(self, frame: str, text: str) -> tuple[int, ...]:
        """A text in a frame. Raises DataError (PromptRefusedError for "chat" without a template)."""
        if frame == CHAT_FRAME:
            return self.encode_chat([{"role": "user", "content": text}])
        if frame == BARE_FRAME:
            return self.encode_text(text)
        return self.encode_text(check_frame(frame).replace("{text}", text))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """A conversation in the chat template, with the opening of the assistant's turn.

        Raises PromptRefusedError when the model has no template or the template refuses the conversation.
        """
        if not self.has_chat_template:
            raise PromptRefusedError("this model has no chat template: use /v1/completions, or another frame")
        if not any(token in message["content"] for message in messages for token in self._special):
            return self._encode_pieces([(self._render(messages), True)])
        marked = [{**m, "content": _MARK.format(index=i)} for i, m in enumerate(messages)]
        rest, pieces = self._render(marked), []
        for index, message in enumerate(messages):
            head, mark, rest = rest.partition(_MARK.format(index=index))
            pieces.append((head, True))
            if mark:
                pieces.append((message["content"], False))
        return self._encode_pieces([*pieces, (rest, True)])

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise PromptRefusedError(f"the model's chat template refuses these messages: {error}") from error
        return str(rendered)

    def _encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> tuple[int, ...]:
        """Token ids of adjoining pieces; special tokens count only in the pieces marked True.

        Plain text is joined across pieces before it is encoded: a tokenizer splits at special tokens only.
        """
        ids: list[int] = []
        plain = ""

        def flush() -> None:
            nonlocal plain
            if plain:
                encoded = self.tokenizer(
                    plain, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
                )
                ids.extend(encoded["input_ids"])
                plain = ""

        for text, trusted in pieces:
            while text:
                found = self._first_special(text) if trusted else None
                if found is None:
                    plain += text
                    break
                start, token = found
                plain += text[:start]
                flush()
                ids.append(int(self.tokenizer.convert_tokens_to_ids(token)))
                text = text[start + len(token) :]
        flush()
        return tuple(ids)

    def _first_special(self, text: str) -> tuple[int, str] | None:
        """The leftmost special token of a text, the longest where two start together."""
        found = [(start, -len(token), token) for token in self._special if (start := text.find(token)) >= 0]
        if not found:
            return None
        start, _, token = min(found)
        return start, token
