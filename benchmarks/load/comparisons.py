"""What is compared: how both sides are started, and what they are asked."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from benchmarks.load.compare import Load
from benchmarks.load.prompts import HARMLESS, LONG, SHARES
from benchmarks.load.servers import (
    VLLM_FLAGS,
    Server,
    Setup,
    ceiling,
    replicas,
    router,
    skillguard,
    transformers_itself,
    vllm_itself,
)

Sides = Callable[[Setup], AbstractContextManager[Mapping[str, Server]]]

WITHOUT_SKILL = {HARMLESS: 0.75, LONG: 0.25}
"""Where sides must do the same work: nothing that only one of them refuses."""
TO_THE_END: Mapping[str, object] = {"ignore_eos": True}
REPLICAS = 4
_LEAST = 8
"""Requests of a round, however few clients ask."""


@dataclass(frozen=True)
class Comparison:
    """Sides by name; the speed of each is shown over the first's."""

    sides: Sides
    shares: Mapping[str, float]
    clients: tuple[int, ...]
    requests_of_client: int
    """In a round."""
    max_tokens: int
    more: Mapping[str, object]

    def load(self, source: str, clients: int, requests: int | None) -> Load:
        """One round's load."""
        asked = requests or max(_LEAST, clients * self.requests_of_client)
        return Load(source, self.shares, asked, self.max_tokens, more=self.more)


@contextmanager
def _guards(setup: Setup) -> Iterator[Mapping[str, Server]]:
    vllm = ("--engine", "vllm", *VLLM_FLAGS)
    with skillguard(setup, *vllm, guarded=False) as plain, skillguard(setup, *vllm, guarded=True) as guarded:
        yield {"unguarded": plain, "guarded": guarded}


@contextmanager
def _http(setup: Setup) -> Iterator[Mapping[str, Server]]:
    with vllm_itself(setup) as theirs, skillguard(setup, "--engine", "vllm", *VLLM_FLAGS, guarded=False) as ours:
        yield {"vllm serve": theirs, "skillguard serve": ours}


@contextmanager
def _transformers(setup: Setup) -> Iterator[Mapping[str, Server]]:
    with transformers_itself(setup) as theirs, skillguard(setup, "--dtype", "float32", guarded=False) as ours:
        yield {"transformers serve": theirs, "skillguard serve": ours}


@contextmanager
def _router(setup: Setup) -> Iterator[Mapping[str, Server]]:
    with replicas(setup, REPLICAS) as servers, router(servers) as routed:
        yield {"one replica": servers[0], f"{REPLICAS} behind nginx": routed}


@contextmanager
def _levels(setup: Setup) -> Iterator[Mapping[str, Server]]:
    vllm = ("--engine", "vllm", *VLLM_FLAGS)
    with skillguard(setup, guarded=True) as embedded, skillguard(setup, *vllm, guarded=True) as on_vllm:
        yield {"embedded": embedded, "vllm": on_vllm}


@contextmanager
def _ceiling(setup: Setup) -> Iterator[Mapping[str, Server]]:
    with ceiling() as server:
        yield {"a server that only sends": server}


COMPARISONS: Mapping[str, Comparison] = {
    "guards": Comparison(_guards, WITHOUT_SKILL, (64,), 2, 64, {}),
    "http": Comparison(_http, WITHOUT_SKILL, (1, 16, 64), 3, 64, TO_THE_END),
    "transformers": Comparison(_transformers, WITHOUT_SKILL, (1, 16, 64), 2, 32, {}),
    "router": Comparison(_router, WITHOUT_SKILL, (1, 16, 64), 2, 32, TO_THE_END),
    "levels": Comparison(_levels, SHARES, (1, 4, 16, 64, 256), 2, 32, {}),
    "ceiling": Comparison(_ceiling, SHARES, (1, 16, 64, 256), 8, 64, {}),
}
