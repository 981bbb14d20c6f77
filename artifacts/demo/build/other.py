"""What the model cannot do: topics and requests with one polite answer, so that it need not invent one."""

from __future__ import annotations

import random

from artifacts.demo.build.material import table
from artifacts.demo.build.rows import Row
from artifacts.demo.build.wordings import decorate


def draw(rng: random.Random) -> Row:
    """One training row outside the ten skills."""
    texts = table("other")
    if rng.random() < 0.3:
        return Row(decorate(rng.choice(texts["about"]["train"]), rng), texts["answers"]["about"])
    unknown = texts["unknown"]
    if rng.random() < 0.3:
        text = rng.choice(unknown["whole"])
    else:
        text = rng.choice(unknown["wordings"]).format(t=rng.choice(unknown["topics"]))
    return Row(decorate(text, rng), texts["answers"]["unknown"])
