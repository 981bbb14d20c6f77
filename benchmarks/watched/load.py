"""Callers of two tenants."""

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import httpx

from artifacts.demo.build.rows import SKILLS
from benchmarks.serving import ROOT
from guards.calibration.sources import read_source

_DATA = ROOT / "artifacts" / "demo" / "data"
_AT_A_TIME = 4
TENANTS = ("search", "support")


def prompts(skill: str) -> list[str]:
    """Test prompts of one skill of the demo."""
    return [*read_source(str(_DATA / f"{skill}.test.jsonl")).texts]


def others(skill: str) -> list[str]:
    """Test prompts of all other skills, in turn."""
    lists = [prompts(other) for other in SKILLS if other != skill]
    return [text for texts in zip(*lists, strict=False) for text in texts]


def mixed(skill: str, count: int, share: float) -> list[str]:
    """So many prompts, of which a share is of the skill, shuffled."""
    wanted = round(count * share)
    texts = [*islice(cycle(prompts(skill)), wanted), *islice(cycle(others(skill)), count - wanted)]
    random.Random(0).shuffle(texts)
    return texts


def ask(url: str, keys: Sequence[str], texts: Iterable[str]) -> int:
    """Asks each, half of them as streams; returns how many were withheld."""

    def one(job: tuple[int, str, str]) -> bool:
        index, key, text = job
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "stream": index % 2 == 0}
        response = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        response.raise_for_status()
        return "content_filter" in response.text

    jobs = [(index, key, text) for index, (key, text) in enumerate(zip(cycle(keys), texts, strict=False))]
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(_AT_A_TIME) as pool:
        return sum(pool.map(one, jobs))


def fail(url: str, key: str) -> None:
    """One request with a wrong key, and one that asks for what there is not."""
    body = {"messages": [{"role": "user", "content": "Hi."}]}
    for sent, wrong in ((key + "x", {}), (key, {"best_of": 3})):
        headers = {"authorization": f"Bearer {sent}"}
        response = httpx.post(f"{url}/v1/chat/completions", json={**body, **wrong}, headers=headers)
        assert response.is_client_error, response.text
