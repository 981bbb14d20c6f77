"""Stands in for `tests/utils.py` of vLLM: its tests start a server, and get the one that runs already."""

import os
from typing import Any
from urllib.parse import urlsplit

import openai


class RemoteOpenAIServer:
    """As vLLM's own, which its tests use by these names."""

    DUMMY_API_KEY = "unused"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.url_root = os.environ["SKILLGUARD_URL"]
        self.host, self.port = urlsplit(self.url_root).hostname, urlsplit(self.url_root).port

    def __enter__(self) -> "RemoteOpenAIServer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        """An address of the server."""
        return "/".join([self.url_root, *parts])

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        known = {"base_url": self.url_for("v1"), "api_key": self.DUMMY_API_KEY, "max_retries": 0, "timeout": 600}
        return {**known, **given}

    def get_client(self, **given: Any) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(**self._options(given))

    def get_async_client(self, **given: Any) -> openai.AsyncOpenAI:
        """The official client, for event loops."""
        return openai.AsyncOpenAI(**self._options(given))
