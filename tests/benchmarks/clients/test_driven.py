"""People's clients from the package index, against a server that runs: each step of `benchmarks.clients` passes."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.clients.__main__ import DEMO, server
from benchmarks.clients.drivers.steps import Served
from benchmarks.clients.environments import unsatisfied
from benchmarks.clients.registry import STYLES, chosen
from benchmarks.clients.run import drive

INSTALLED = (
    *("openai-create", "openai-parse", "openai-stream", "openai-responses", "langchain-openai", "litellm"),
    *("pydantic-ai", "openai-agents", "openai-agents-chat"),
)
"""Clients whose packages the tests' environment has; `python -m benchmarks.clients` drives the others too."""


@pytest.fixture(scope="module", params=STYLES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with server(argparse.Namespace(base_url=None, tokenizer=DEMO), request.param, ()) as found:
        yield found


@pytest.mark.parametrize("name", INSTALLED)
def test_a_client_passes_every_step(served: Served, name: str, tmp_path: Path) -> None:
    (client,) = chosen([name])
    assert unsatisfied(client.requires) == [], "the tests' environment has it"
    rows = drive(client, served, tmp_path)
    assert rows
    assert [(row["step"], row["said"]) for row in rows if row["outcome"] != "passed"] == []


@pytest.mark.parametrize("served", STYLES[:1], indirect=True)
def test_a_proxy_passes_every_step(served: Served, tmp_path: Path) -> None:
    """LiteLLM's proxy, in an environment of its own: it wants many packages."""
    (client,) = chosen(["litellm-proxy"])
    rows = drive(client, served, tmp_path)
    assert {row["outcome"] for row in rows} == {"passed"}, rows
