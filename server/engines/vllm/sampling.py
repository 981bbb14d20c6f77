"""A request's options in vLLM's words, and vLLM's own check of those that take long to check.

vLLM compiles a grammar to check it, seconds for a large schema, and encodes bad words, of each answer anew. Here both
are done once, by `Engine.prepare` and beside the event loop; answers are given what came of it.
"""

import json
from collections.abc import Callable, Collection, Sequence

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from guards.core.policy import Policy
from guards.inside.vllm.events import POLICY, PROOF
from server.engines.errors import InvalidOptionError
from server.engines.grammars import Compiled
from server.engines.request import ALL_OPTIONS, Grammar, GrammarKind, Sampling


class Grammars:
    """Grammars that vLLM has checked. Safe to call from several threads."""

    def __init__(self, verify: Callable[[SamplingParams], None]) -> None:
        """`verify`: vLLM's check, which also writes down by which compiler the grammar is for."""
        self._verify = verify
        self._checked = Compiled(self._check)

    def checked(self, grammar: Grammar) -> StructuredOutputsParams:
        """As a request takes it to vLLM. Raises InvalidOptionError where vLLM does not take it."""
        return self._checked(grammar)

    def _check(self, grammar: Grammar) -> StructuredOutputsParams:
        parameters = SamplingParams(structured_outputs=_structured(grammar))
        try:
            self._verify(parameters)
        except (ValueError, VLLMClientError) as error:
            raise refused(error, "grammar") from error
        return parameters.structured_outputs


def sampling_params(sampling: Sampling, policy: Policy, *, proof: bool = False) -> SamplingParams:
    """All but what `take_prepared` gives. Stop strings and text are ours, as on every engine; vLLM draws token ids."""
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=list(sampling.allowed_token_ids) or None,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=list(sampling.stop_token_ids) or None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={POLICY: policy.text, **({PROOF: True} if proof else {})},
        skip_reading_prefix_cache=True if proof else None,
        skip_clone=True,
    )


def cache_salt(tenant: str, off: Collection[str]) -> str | None:
    """What keeps cached prefixes of tenants apart, and of requests for which other interventions are `off`."""
    return json.dumps([tenant, sorted(off)]) if tenant or off else None


def take_prepared(
    parameters: SamplingParams, sampling: Sampling, bad_words: Sequence[Sequence[int]], grammars: Grammars
) -> None:
    """What vLLM would make of bad words and a grammar, were they there when it looked at the request."""
    if sampling.bad_words:
        parameters.bad_words = list(sampling.bad_words)
        parameters._bad_words_token_ids = [list(word) for word in bad_words]
    if sampling.grammar is not None:
        parameters.structured_outputs = grammars.checked(sampling.grammar)


def refused(error: Exception, otherwise: str) -> InvalidOptionError:
    """Of vLLM's own checks, by `otherwise` where they name no option. A message may end in the whole value that was
    refused.
    """
    parameter = getattr(error, "parameter", None)
    named = parameter if parameter in ALL_OPTIONS else otherwise
    return InvalidOptionError(str(error.args[0] if error.args else error)[:300], named)


def _structured(grammar: Grammar) -> StructuredOutputsParams:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return StructuredOutputsParams(json=grammar.text)
        case GrammarKind.JSON_OBJECT:
            return StructuredOutputsParams(json_object=True)
        case GrammarKind.REGEX:
            return StructuredOutputsParams(regex=grammar.text)
        case GrammarKind.CHOICE:
            return StructuredOutputsParams(choice=json.loads(grammar.text))
        case GrammarKind.EBNF:
            return StructuredOutputsParams(grammar=grammar.text)
        case GrammarKind.STRUCTURAL_TAG:
            return StructuredOutputsParams(structural_tag=grammar.text)
