"""The checked inputs of a calibration of LUNAR, and its passes over them.

Suffixes: T tokens, D the residual stream's width (d_model).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from guards.artifact.canaries import CANARY_DATE
from guards.calibration.activations import Activations, Consumer, Pass, TokenIds, Tokens
from guards.calibration.corpus import (
    FORGET_DEAL,
    SIDES,
    Corpus,
    Share,
    Side,
    encode_corpora,
    frame_tokens,
    resolve_frames,
)
from guards.calibration.last_tokens import LastTokens, evenly
from guards.calibration.material import read_material, read_references
from guards.calibration.sides import Advance
from guards.calibration.sources import Source
from guards.errors import CalibrationError
from guards.methods.lunar.options import LunarOptions
from guards.model.sites import Site


@dataclass(frozen=True)
class Job:
    """The checked inputs of the passes, of every frame together."""

    model: Activations
    options: LunarOptions
    frames: tuple[str, ...]
    corpora: Mapping[Side, Corpus]
    parts: Mapping[Side, Mapping[Share, list[int]]]
    reference: Sequence[TokenIds]
    lead: Mapping[str, int]
    """How many leading tokens every example of a frame shares."""
    advance: Advance = lambda *_: None

    def tokens(self, candidates: int, gatherings: int) -> int:
        """What all passes run over, and answers: of reference prompts, and of others without a change and with each.

        `gatherings`: passes over the fit part. Prompts that are answered under a change are run over once more before:
        is the model finite?
        """
        keys = [
            passes * _count(self.of(side, share))
            for side in SIDES
            for share, passes in ((Share.FIT, gatherings), (Share.THRESHOLD, 1))
        ]
        states = [_count(self.some(side, share)) for side in SIDES for share in (Share.FIT, Share.REPORT)]
        answers = self._written(self.asked_reference())
        for share, changes in ((Share.THRESHOLD, candidates), (Share.REPORT, 1)):
            asked = [prompt for side in SIDES for prompt in self.asked(side, share)]
            answers += (1 + changes) * self._written(asked) + changes * _count(asked)
        return sum(keys) + sum(states) + _count(self.reference) + answers

    def _written(self, prompts: Sequence[TokenIds]) -> int:
        return _count(prompts) + len(prompts) * self.options.asked_tokens

    def of(self, side: Side, share: Share) -> list[TokenIds]:
        """The prompts of a part, frame after frame."""
        return [ids[text] for ids in self.corpora[side].encoded.values() for text in self.parts[side][share]]

    def some(self, side: Side, share: Share) -> list[TokenIds]:
        """Those of a part whose last tokens are looked at, evenly spaced over its sources and frames."""
        return evenly(self.of(side, share))

    def asked(self, side: Side, share: Share) -> list[TokenIds]:
        """Those of a part that are answered. Raises CalibrationError where none leaves room for an answer."""
        return self._with_room(self.of(side, share), f"{side} prompts of the {share} part")

    def asked_reference(self) -> list[TokenIds]:
        """Reference prompts that are answered. Raises CalibrationError."""
        return self._with_room(self.reference, "reference prompts")

    def _with_room(self, prompts: Sequence[TokenIds], what: str) -> list[TokenIds]:
        tokens, limit = self.options.asked_tokens, self.model.max_tokens
        short = [ids for ids in prompts if limit is None or len(ids) + tokens <= limit]
        if not short:
            raise CalibrationError(
                f"no answer of {tokens} tokens fits the model's context of {limit} behind any of the {len(prompts)} "
                f"{what}: lower `asked_tokens`, or give shorter ones"
            )
        return evenly(short, self.options.asked)

    def write(self, prompts: Sequence[TokenIds]) -> list[TokenIds]:
        """The model's answers, greedily, as it is now."""
        return self.model.write(
            prompts, self.options.asked_tokens, lambda tokens: self.advance(tokens, "compare answers")
        )

    def opening(self) -> TokenIds:
        """What every prompt of the first frame begins with, a token at least."""
        frame = self.frames[0]
        return self.corpora["forget"].encoded[frame][0][: max(self.lead[frame], 1)]

    @property
    def last(self) -> LastTokens:
        """States at last tokens."""
        return LastTokens(self.model, self.options.batch_tokens, self.advance)

    def keys(self, layers: tuple[int, ...], side: Side, share: Share, consume: Consumer) -> None:
        """Key vectors of all tokens; of forget texts but those which retain texts begin with too."""
        for frame in self.frames:
            encoded, skip = self.corpora[side].encoded[frame], self.lead[frame] if side == "forget" else 0
            wanted = Pass(Site.KEY, layers, Tokens.ALL, (skip, 0), self.options.batch_tokens)
            examples = [encoded[text] for text in self.parts[side][share]]
            self.model.stream(wanted, examples, consume, lambda tokens: self.advance(tokens, "keys"))


def _count(examples: Iterable[TokenIds]) -> int:
    return sum(map(len, examples))


def prepared(model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: LunarOptions) -> Job:
    """Encodes and deals both sides. Raises DataError or CalibrationError."""
    frames = resolve_frames(options, model.codec)
    retained = [*retain, *read_material(options.material).sources]
    corpora = encode_corpora(forget, retained, frames, model.codec, model.max_tokens)
    if min(len(corpus.texts) for corpus in corpora) < len(FORGET_DEAL):
        raise CalibrationError(
            f"got {len(corpora[0].texts)} forget and {len(corpora[1].texts)} retain examples, wanted at least "
            f"{len(FORGET_DEAL)} of each, better some hundred"
        )
    dated, texts = model.codec.on_day(CANARY_DATE), read_references(options.reference).texts
    encoded = [(frame, corpora[0].encoded[frame] + corpora[1].encoded[frame]) for frame in frames]
    return Job(
        model,
        options,
        frames,
        {"forget": corpora[0], "retain": corpora[1]},
        {"forget": corpora[0].deal(FORGET_DEAL, options.seed), "retain": corpora[1].deal(FORGET_DEAL, options.seed)},
        [dated.encode_frame(frame, text) for frame in frames for text in texts],
        {frame: frame_tokens(examples)[0] for frame, examples in encoded},
    )
