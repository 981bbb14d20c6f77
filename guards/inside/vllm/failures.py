"""Why a worker of vLLM could not start, told to the engine that waits for it: vLLM itself only says that one died."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guards.inside.vllm.settings import FAILURE_FILE

_LONGEST = 600


def tell(error: BaseException) -> None:
    """Writes the reason in one line where the engine looks for it. The first one counts: others follow from it."""
    path = Path(os.environ.get(FAILURE_FILE, ""))
    if path.name and path.parent.is_dir() and not path.exists():  # the engine that started does not look any more
        path.write_text(" ".join(f"{error}".split())[:_LONGEST] or type(error).__name__)


@contextmanager
def told() -> Iterator[None]:
    """Tells what is raised within."""
    try:
        yield
    except Exception as error:
        tell(error)
        raise
