"""The examples of a calibration over spans: both sides' texts in every frame, and in every surrounding.

The forget set and every retain source are dealt into fit (half), threshold (a quarter) and report (a quarter). A text
stays in its part, whatever is put around it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from guards.calibration.activations import TokenIds
from guards.calibration.corpus import Share, Side
from guards.calibration.detector_job import DetectorJob
from guards.calibration.material import Material, read_material
from guards.calibration.surroundings import Kind, Surroundings
from guards.methods.spans.options import SpanOptions

SpanJob = DetectorJob[SpanOptions]


@dataclass(frozen=True)
class Example:
    """A prompt. `source` is where its text is from, "" where it is of several; `row` is its frame or kind."""

    ids: TokenIds
    side: Side
    share: Share
    source: str
    row: str


def all_examples(job: SpanJob) -> list[Example]:
    """Those of every share."""
    return [*_framed(job), *_surrounded(job)]


def _framed(job: SpanJob) -> Iterator[Example]:
    for side, corpus in job.corpora.items():
        for share, members in job.parts[side].items():
            for frame in job.frames:
                for text in members:
                    source = corpus.sources[corpus.source_of[text]].name
                    yield Example(corpus.encoded[frame][text], side, share, source, frame)


def _surrounded(job: SpanJob) -> Iterator[Example]:
    material = read_material(job.options.material)
    limit = job.model.max_tokens or job.options.longest
    for index, share in enumerate(Share):
        sides: Mapping[Side, list[str]] = {
            side: [corpus.texts[text] for text in job.parts[side][share]] for side, corpus in job.corpora.items()
        }
        makes = Surroundings(
            job.model.codec,
            job.frames[0],
            sides["forget"],
            sides["retain"],
            _part(material, index),
            longest=min(job.options.longest, limit) * 9 // 10,
            seed=job.options.seed + index,
        )
        made_of: Mapping[Side, Iterator[tuple[Kind, TokenIds]]] = {"forget": makes.forget(), "retain": makes.retain()}
        for side, made in made_of.items():
            for kind, ids in made:
                fitted = share is not Share.FIT or kind is Kind.UPPER
                if fitted and len(ids) <= limit:
                    yield Example(ids, side, share, "", kind.value)


def _part(material: Material, index: int) -> Material:
    """Every third of its surroundings, so that shares have none in common."""
    every = slice(index, None, len(Share))
    return replace(
        material,
        system_prompts=material.system_prompts[every],
        chats=material.chats[every],
        tools=material.tools[every],
    )


def chosen(examples: Sequence[Example], side: Side, share: Share) -> list[int]:
    """Indices of those of a side and share."""
    return [index for index, each in enumerate(examples) if (each.side, each.share) == (side, share)]
