"""Every kind of operator runs as in a pass, so that what is timed is what acts."""

import torch

from benchmarks.operators.timing import MADE, cells


def test_each_runs_and_is_timed() -> None:
    rows = list(cells([33], [3], [2], torch.float32, ["eager"]))
    assert [row["method"] for row in rows] == [*MADE]
    assert all(row["times_copy"] > 0 for row in rows)
