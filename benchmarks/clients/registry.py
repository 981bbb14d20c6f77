"""The clients, and what each needs from the package index."""

from dataclasses import dataclass

STYLES = ("content_filter", "refusal")
"""Abstention styles under which a client is driven."""


@dataclass(frozen=True)
class Client:
    """A client. `driver`: the module of `drivers/` that drives it. `requires`: as pip takes it, its own first."""

    name: str
    driver: str
    requires: tuple[str, ...]
    styles: tuple[str, ...] = STYLES
    layered: bool = False
    """Whether an environment of its own shows this one's packages too: torch is gigabytes to install again."""

    @property
    def package(self) -> str:
        """The package whose version is shown."""
        return self.requires[0].partition("[")[0]


_OPENAI = ("openai",)

CLIENTS = (
    Client("openai-create", "openai_sdk", _OPENAI),
    Client("openai-parse", "openai_sdk", _OPENAI),
    Client("openai-stream", "openai_sdk", _OPENAI),
    Client("openai-responses", "openai_sdk", _OPENAI),
    Client("langchain-openai", "langchain", ("langchain-openai",)),
    Client("litellm", "litellm_library", ("litellm",)),
    Client("litellm-proxy", "litellm_proxy", ("litellm[proxy]", "openai")),
    Client("litellm-guardrail", "litellm_guardrail", ("litellm[proxy]", "openai"), ("content_filter",)),
    Client("pydantic-ai", "pydantic_agents", ("pydantic-ai-slim[openai]",)),
    Client("openai-agents", "openai_agents", ("openai-agents",)),
    Client("openai-agents-chat", "openai_agents", ("openai-agents",)),
    Client("instructor", "instructors", ("instructor", "openai")),
    Client("lm_eval", "harness", ("lm_eval[api]", "transformers"), ("content_filter",), layered=True),
    Client("guidellm", "load", ("guidellm",), ("content_filter",), layered=True),
)


def chosen(names: list[str] | None) -> list[Client]:
    """Clients by name, or all. Raises ValueError for a name that is none."""
    known = {client.name: client for client in CLIENTS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"got {', '.join(unknown)}; wanted some of {', '.join(known)}")
    return [client for client in CLIENTS if names is None or client.name in names]
