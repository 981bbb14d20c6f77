"""How a command reads a prompt frame."""


def read_frame(text: str) -> str:
    r"""A frame as meant: a shell passes the two characters \n where a template means a line break."""
    return text.replace("\\n", "\n")
