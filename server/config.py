"""The server's settings. Each default lives here and nowhere else; the command line reads them from the fields.

What belongs to an engine (model path, artifacts, device, dtype, queue length) is the engine's own configuration.
"""

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

T = TypeVar("T")


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named twice: {', '.join(twice)}; name each guard once")
    return names


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin}: wanted * or an origin such as https://chat.example.org, without a path")
    return origins


def _hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if host != "*" and not _HOST.fullmatch(host):
            raise ValueError(f"{host}: wanted * or a name such as chat.example.org or *.example.org, without a port")
    return hosts


GuardNames = Annotated[tuple[str, ...], AfterValidator(_each_once)]
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.-]+(:[0-9]{1,5})?|[a-z][a-z0-9+.-]*://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Line = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
"""A text that is not blank."""


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern}: wanted a regular expression ({error})") from error
    return patterns


_PERSONAL = (
    r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+",
    r"\b(?:(?:sk|pk|rk|ghp|gho|ghs|glpat|xox[abprs]|hf)[-_]|AKIA)[\w.-]{8,}",
    r"\b(?=\w*\d)(?=\w*[A-Za-z])[\w-]{24,}\b",
    r"\+?\d(?:[ ().-]?\d){6,}",
)
"""Mail addresses, keys by how they begin, long words of letters and digits, and long numbers as people write them."""


class AuditFailure(StrEnum):
    """What an answer gets that must be recorded and cannot be."""

    REFUSE = "refuse"
    ANSWER = "answer"


class AbstainStyle(StrEnum):
    """How a withheld answer looks to the caller; `server/openai/abstention.py` says exactly what each sends."""

    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    ERROR = "error"


class ServerConfig(BaseModel):
    """Frozen; an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Line = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    abstain_style: AbstainStyle = Field(
        AbstainStyle.CONTENT_FILTER,
        description="content_filter: 200 with finish_reason content_filter. refusal: 200 with finish_reason stop and "
        "the text as the message's refusal, for SDK helpers that raise on content_filter. error: 400 with code "
        "skill_abstained.",
    )
    abstain_text: Line = Field(
        "I'm sorry, but I can't help with that here.",
        description="What the caller reads in place of a withheld answer.",
    )
    hold_back_tokens: int = Field(
        0,
        ge=0,
        le=4096,
        description="Tokens by which a stream lags behind the model. Raising it takes back more of an answer whose "
        "skill shows late, and costs that many tokens of delay before the first text.",
    )
    shadow: GuardNames = Field(
        (),
        title="GUARD",
        description="Names of guards whose hits are only counted and logged, for trying a guard out.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file of tenants and their hashed API keys, which `skillguard key` writes. A change counts "
        "from the next request on. Without a file nobody needs a key, and callers are what anonymous_role says.",
    )
    anonymous_role: Literal["user", "operator"] = Field(
        "user",
        description="What callers are where there are no keys. operator shows scores and thresholds to whoever can "
        "connect: a score tells an attacker which wording comes nearer to passing.",
    )
    allowed_origins: Annotated[tuple[str, ...], AfterValidator(_origins)] = Field(
        (),
        title="ORIGIN",
        description="Web origins whose pages may call this server from a browser (CORS), * for all; none by default.",
    )
    allowed_hosts: Annotated[tuple[str, ...], AfterValidator(_hosts)] = Field(
        (),
        title="HOST",
        description="Names that this server may be called by (the Host header), *.example.org for all below one, * for "
        "any; addresses and localhost are always right. By default any, but none where there are no keys and --host is "
        "this machine, since a page of another origin could have its own name point here (DNS rebinding).",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (),
        title="NETWORK",
        description="Addresses or networks of proxies and gateways whose connections are many people's: they count for "
        "--max-connections only.",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="Most connections. One more takes the place of one that waits for its other end, longest first; "
        "where none does, it is a 429.",
    )
    max_connections_per_address: int = Field(
        512,
        ge=1,
        description="Most connections of one IPv4 address or one IPv6 network of 64 bits; beyond it the same.",
    )
    header_timeout_seconds: float = Field(
        10.0, gt=0, description="How long a request's headers may take, from the connection or their first byte on."
    )
    body_timeout_seconds: float = Field(30.0, gt=0, description="How long a request's body may take; then it is a 408.")
    send_timeout_seconds: float = Field(
        60.0, gt=0, description="How long a client may read nothing of an answer that is there before it is cut."
    )
    keep_alive_timeout_seconds: int = Field(
        75, ge=1, description="How long a connection is kept for another request. Longer than routers keep theirs."
    )
    stop_timeout_seconds: float = Field(
        25.0, gt=0, description="How long running answers may go on after SIGTERM before they are cut."
    )
    max_body_bytes: int = Field(
        1 << 20, ge=1024, description="Largest request body; a larger one is refused with 413 while it arrives."
    )
    max_answers: int = Field(
        8,
        ge=1,
        le=1024,
        description="Most answers one request may ask for: n times the number of prompts. Each takes a place in the "
        "engine's queue.",
    )
    default_max_tokens: int | None = Field(
        None,
        ge=1,
        description="Length of an answer where the caller gives none; by default the model's own (max_new_tokens of "
        "its generation_config.json), and else what its context leaves.",
    )

    audit_dir: Path | None = Field(
        None,
        description="Folder for the audit log, which must be there: a chained JSON line for each abstention, shadow "
        "hit, error and self-check. Without one, hits are lines of the program's log.",
    )
    audit_failure: AuditFailure = Field(
        AuditFailure.REFUSE,
        description="What an answer gets that must be recorded and cannot be. refuse: 503 with code audit_failure. "
        "answer: it goes on, and is counted.",
    )
    audit_max_bytes: int = Field(
        64 << 20, ge=4096, description="Size at which another file of the audit log is begun. None is ever removed."
    )
    audit_fsync: bool = Field(
        False,
        description="Wait until the disk has each record. Without it a power cut may lose the last ones; with it an "
        "abstention waits for the disk.",
    )
    audit_scores: GuardNames = Field(
        (),
        title="GUARD",
        description="Guards of which every reading of a prompt is recorded, not only hits: what `skillguard "
        "propose-tau` needs. A line for each answer.",
    )
    audit_text: bool = Field(
        False, description="Record the prompt's text beside each hit, redacted, from its end up to 4,096 characters."
    )
    audit_redact: Annotated[tuple[str, ...], AfterValidator(_patterns)] = Field(
        _PERSONAL,
        title="PATTERN",
        description="Regular expressions whose matches are replaced in recorded text, in the place of those for mail "
        "addresses, long numbers and keys.",
    )
    trace_guards: bool = Field(
        False,
        description="Add an event to the request's OpenTelemetry span for each hit, by the conventions for generative "
        "models. Spans themselves are switched on by OTEL_EXPORTER_OTLP_ENDPOINT.",
    )
    canary_interval_seconds: float | None = Field(
        None,
        ge=1,
        description="Time between self-checks of a server that is ready: its guards' canaries go through the engine "
        "again. By default only at the start.",
    )

    reload_patience_seconds: float = Field(
        120.0,
        gt=0,
        description="How long a reload of a guard waits for running answers to end, while new requests wait for it. "
        "Then it is given up, and nothing has changed.",
    )

    @field_validator("audit_failure", "audit_max_bytes", "audit_fsync", "audit_scores", "audit_text", "audit_redact")
    @classmethod
    def _of_an_audit_log(cls, value: T, info: ValidationInfo) -> T:
        """`audit_dir` stands before these, so it is known here unless it was wrong itself."""
        asks = info.field_name is not None and value != cls.model_fields[info.field_name].default
        if asks and info.data.get("audit_dir", "wrong") is None:
            raise ValueError("there is no audit log that it would hold for; give audit_dir too, or leave it out")
        return value

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only programs on this machine can connect. A reverse proxy in front makes this say too much."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
