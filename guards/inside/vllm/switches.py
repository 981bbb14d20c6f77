"""Which interventions do not act on which tokens of a pass of vLLM: by the policy that each request brought."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from guards.core.policy import Policy
from guards.core.verdict import GuardMode
from guards.inside.vllm.events import POLICY

Off = list[tuple[int, frozenset[str]]]


@lru_cache(maxsize=4096)
def _off(text: str | None) -> frozenset[str]:
    rules = {} if text is None else Policy.parse(text).rules
    return frozenset(name for name, rule in rules.items() if rule.mode is GuardMode.OFF)


def off_finder(runner: Any) -> Callable[[], Off]:
    """What the model runner's batch says: each request's tokens in the pass, in their order, and its guards that are
    off. Nothing in a pass for nobody, by which vLLM warms up.
    """

    def find() -> Off:
        requests = runner.input_batch.req_ids
        tokens = np.diff(runner.query_start_loc.np[: len(requests) + 1]).tolist()
        names = [_off((runner.requests[each].sampling_params.extra_args or {}).get(POLICY)) for each in requests]
        return list(zip(tokens, names, strict=True))

    return find
