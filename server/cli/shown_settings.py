"""Settings as the TOML file that would give them, each with where it came from."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from guards.artifact.pins import ArtifactPath
from server.secret_names import redacted
from server.settings import SECTIONS, Choice, Effective, Key, Origin, environment_name


def shown(effective: Effective) -> str:
    """One setting a line; the other engine's are left out. A setting without a value is a comment."""
    settings = effective.settings
    lines = _lines(effective, (), settings, Choice)
    for name, model in SECTIONS.items():
        section = getattr(settings, name)
        if name in ("server", settings.engine):
            lines += ["", f"[{name}]", *_lines(effective, (name,), section, model)]
    return "\n".join(lines)


def _lines(effective: Effective, above: Key, values: BaseModel, model: type[BaseModel]) -> list[str]:
    found = []
    for name in model.model_fields:
        key = (*above, name)
        value = getattr(values, name)
        if key == ("vllm", "flags"):
            value = redacted(value)
        text = f"# {name} = none" if value is None else f"{name} = {toml(value)}"
        origins = effective.origins.get(key, (Origin.DEFAULT,))
        found.append(f"{text}  # {' and '.join(_where(key, origin, effective) for origin in origins)}")
    return found


def _where(key: Key, origin: Origin, effective: Effective) -> str:
    match origin:
        case Origin.FILE:
            return f"file {effective.file}"
        case Origin.ENVIRONMENT:
            return f"environment {environment_name(key)}"
        case Origin.FLAG if key == ("vllm", "flags"):
            return "flags"
        case Origin.FLAG:
            return f"flag --{key[-1].replace('_', '-')}"
        case Origin.DEFAULT:
            return "default"


def toml(value: Any) -> str:
    """A value in TOML, whose strings, numbers and lists are written as JSON's. It has no null."""
    if isinstance(value, Enum):
        return toml(value.value)
    if isinstance(value, Path | ArtifactPath):
        return toml(str(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
