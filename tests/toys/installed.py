"""Makes the toys known as an installed package does, to this process and to those that it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guards.methods.registry import GROUP, methods


@contextmanager
def installed(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """While this lasts, `folder` is on the path and holds what pip writes of a package with these entry points."""
    about = folder / "toys-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nprobe = tests.toys:PROBE\nhalving = tests.toys:HALVING\n")
    with patch.context() as patched:
        patched.syspath_prepend(folder)
        methods.cache_clear()
        try:
            yield
        finally:
            methods.cache_clear()
