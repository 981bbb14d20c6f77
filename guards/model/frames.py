"""What surrounds a text that is asked: "chat" (the model's chat template, one user turn), "bare" (the text alone), or a
template with `{text}` such as "Q: {text}\\nA:". A guard fitted on last tokens is bound to its frames.
"""

from guards.core.text import is_encodable
from guards.errors import DataError

CHAT_FRAME = "chat"
BARE_FRAME = "bare"


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
