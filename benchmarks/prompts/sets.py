"""A prompt set: the texts of a material's split in a format, a seeded sample of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prompts.items import Around, Format, Item, Material
from benchmarks.prompts.materials import MATERIALS
from benchmarks.prompts.splits import Split
from guards.calibration.sources import seeded_rank


@dataclass(frozen=True)
class PromptSet:
    """Rendered prompts, which the format encodes. `items[i]` is what `prompts[i]` was made of."""

    material: Material
    format: Format
    split: Split
    items: tuple[Item, ...]
    prompts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Material and format."""
        return f"{self.material.name}/{self.format.name}"


def sample(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` of the items, drawn by seed and text alone, in the order they came."""
    drawn = sorted(seeded_rank([item.text for item in items], seed)[:limit])
    return [items[index] for index in drawn]


def _others(data: Path, format_: Format, split: Split) -> Mapping[str, Sequence[Item]]:
    return {name: MATERIALS[name].read(data, split) for name in format_.needs}


def build(
    data: Path, material: Material, format_: Format, split: Split, *, limit: int | None = None, seed: int = 0
) -> PromptSet:
    """The prompt set. `data`: the folder of the measuring data.

    Worked examples are train items in either split; other texts that a format draws on are of the same split. The
    sample depends on the texts and the seed only, so that formats of one material hold the same questions. Raises
    ValueError where the material has no such side, DataError as reading does.
    """
    if split not in material.splits:
        raise ValueError(f"{material.name} has no {split.value} side: it was written for measuring only")
    items = sample(material.read(data, split), limit, seed)
    shots = material.read(data, Split.TRAIN) if format_.shots else ()
    others = _others(data, format_, split)
    prompts = []
    for item in items:
        rng = random.Random(f"{seed} {material.name} {format_.name} {item.text}")
        free = [shot for shot in shots if shot.text != item.text]
        prompts.append(format_.render(item, Around(rng, free, others)))
    return PromptSet(material, format_, split, tuple(items), tuple(prompts))
