"""The examples of a calibration over spans: both sides' texts in every frame, and in every surrounding.

The forget set and every retain source are dealt into fit (half), threshold (a quarter) and report (a quarter). A text
stays in its part, whatever is put around it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from guards.calibration.activations import TokenIds
from guards.calibration.answers import write_answers
from guards.calibration.corpus import Share, Side
from guards.calibration.detector_job import DetectorJob
from guards.calibration.last_tokens import evenly
from guards.calibration.material import Material, read_material
from guards.calibration.surroundings import FITTED, Kind, Surrounded, Surroundings
from guards.methods.spans.options import SpanOptions

SpanJob = DetectorJob[SpanOptions]
ANSWERED = 48
"""Prompts of each side and share that the model answers, spread evenly over its sources."""
ANSWERED_OF_A_SOURCE = 12
"""Prompts of each retain source that it answers beside, where taus are decided and measured: a cap of half a percent
cannot be told from two or three.
"""
OTHER_FRAMES = 16
"""Texts of each source and share that are read in frames after the first: a direction is the same in all."""


@dataclass(frozen=True)
class Example:
    """A prompt. `source` is where its text is from, "" where it is of several; `row` is its frame or kind.

    `own` are the tokens of the text itself, None for all that its author wrote; of an answer those of the answer.
    """

    ids: TokenIds
    side: Side
    share: Share
    source: str
    row: str
    own: tuple[int, int] | None = None


def all_examples(job: SpanJob) -> list[Example]:
    """Those of every share."""
    return [*_framed(job), *_surrounded(job)]


def _framed(job: SpanJob) -> Iterator[Example]:
    for side, corpus in job.corpora.items():
        for share, members in job.parts[side].items():
            for source in range(len(corpus.sources)):
                texts = [text for text in members if corpus.source_of[text] == source]
                for frame in job.frames:
                    for text in texts if frame == job.frames[0] else texts[:: -(-len(texts) // OTHER_FRAMES) or 1]:
                        yield Example(corpus.encoded[frame][text], side, share, corpus.sources[source].name, frame)


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
        made_of: Mapping[Side, Iterator[Surrounded]] = {"forget": makes.forget(), "retain": makes.retain()}
        for side, made in made_of.items():
            for each in made:
                if (share is not Share.FIT or each.kind in FITTED) and len(each.ids) <= limit:
                    yield Example(each.ids, side, share, "", each.kind.value, each.own)


def _part(material: Material, index: int) -> Material:
    """Every third of its surroundings, so that shares have none in common."""
    every = slice(index, None, len(Share))
    return replace(
        material,
        system_prompts=material.system_prompts[every],
        chats=material.chats[every],
        tools=material.tools[every],
    )


def without_room(job: SpanJob, examples: Sequence[Example]) -> int:
    """How many prompts the model's context holds, but no answer behind them: those to answer are not chosen of them."""
    return sum(each.row == job.frames[0] and not _has_room(job, each) for each in examples)


def _has_room(job: SpanJob, prompt: Example) -> bool:
    limit = job.model.max_tokens
    return limit is None or len(prompt.ids) + job.options.answers <= limit


def answered(job: SpanJob, examples: Sequence[Example]) -> list[Example]:
    """The prompts of every side and share that the model answers, of those with room for an answer."""
    found: dict[int, Example] = {}
    for side in job.corpora:
        for share in Share:
            of_share = indices(examples, side, share)
            members = [i for i in of_share if examples[i].row == job.frames[0] and _has_room(job, examples[i])]
            found |= {i: examples[i] for i in evenly(members, ANSWERED)}
            if side == "retain" and share is not Share.FIT:
                for source in dict.fromkeys(examples[i].source for i in members):
                    own = [i for i in members if examples[i].source == source]
                    found |= {i: examples[i] for i in evenly(own, ANSWERED_OF_A_SOURCE)}
    return list(found.values())


def with_answers(job: SpanJob, prompts: Sequence[Example], advance: Callable[[int], object]) -> list[Example]:
    """Prompts with the answers that the model itself gives, where it gives any. Raises DataError."""
    asked = [each.ids for each in prompts]
    answers = write_answers(job.model, asked, job.options.answers, job.options.answers_file, advance)
    return [
        replace(
            each, ids=each.ids + answer, source="", row=Kind.ANSWERS, own=(len(each.ids), len(each.ids) + len(answer))
        )
        for each, answer in zip(prompts, answers, strict=True)
        if answer
    ]


def indices(examples: Sequence[Example], side: Side, share: Share) -> list[int]:
    """Those of a side and share."""
    return [index for index, each in enumerate(examples) if (each.side, each.share) == (side, share)]
