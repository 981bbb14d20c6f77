"""Makes the toys known as an installed package does, to this process and to those that it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guards.methods.registry import GROUP, methods


@contextmanager
def installed(folder: Path, patch: pytest.MonkeyPatch, *entries: str) -> Iterator[None]:
    """While this lasts, `folder` is on the path and holds what pip writes of a package with these entry points.

    Each is `module:name`; both toys where none is given.
    """
    about = folder / "toys-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    lines = [f"entry{i} = {entry}" for i, entry in enumerate(entries or ("tests.toys:PROBE", "tests.toys:HALVING"))]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    with patch.context() as patched:
        patched.syspath_prepend(folder)
        methods.cache_clear()
        try:
            yield
        finally:
            methods.cache_clear()
