"""All that `serve` can be told: flags over the environment over one file over the defaults.

Each value's default is in the model of its section, and nowhere else.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.config import ServerConfig
from server.demo import with_demo
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import SettingsError
from server.refused_names import NESTED, PREFIX, secrets_in, stray_variables

SECTIONS: dict[str, type[BaseModel]] = {"server": ServerConfig, "transformers": EmbeddedOptions, "vllm": VllmOptions}

Key = tuple[str, ...]
"""A top-level name, or a section and a name in it."""


class Origin(StrEnum):
    """Where a value came from; later ones win."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


class Choice(BaseModel):
    """What stands above the sections."""

    model_config = ConfigDict(frozen=True)

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What runs the model; vllm must be installed."
    )
    unguarded: bool = Field(False, description="Serve without any guard; otherwise serving none is an error.")


class Settings(BaseSettings, Choice):
    """The whole file. Of the engines' sections that of the other engine counts for nothing, but must be sound."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=NESTED, extra="forbid", frozen=True, protected_namespaces=()
    )

    server: ServerConfig = ServerConfig()
    transformers: EmbeddedOptions | None = None
    vllm: VllmOptions | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` puts the sources together, since it remembers which one gave a value."""
        return (init_settings,)


@dataclass(frozen=True)
class Effective:
    """Valid settings, and where those came from that are not defaults. `file` is the one that was read."""

    settings: Settings
    origins: Mapping[Key, tuple[Origin, ...]]
    file: Path | None

    @property
    def server(self) -> ServerConfig:
        return self.settings.server

    @property
    def options(self) -> EmbeddedOptions | VllmOptions:
        """The chosen engine's."""
        options = self.settings.vllm if self.settings.engine == "vllm" else self.settings.transformers
        assert options is not None, "`load` fills in the chosen engine's section"
        return options


class _Environment(EnvSettingsSource):
    """Names the variable where a list or a table is no JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError as error:
            names = [name for name, given in os.environ.items() if given == value and name.upper().startswith(PREFIX)]
            raise SettingsError(
                [f'{", ".join(names)}: got {value[:80]!r}, wanted JSON, such as ["a", "b"] for a list']
            ) from error


def load(engine: str | None, flags_of: Callable[[str], Mapping[str, Any]], file: Path | None) -> Effective:
    """The settings in force. `engine` is the flag's, where there is one; `flags_of` gives an engine's flags, shaped
    like the file.

    Raises SettingsError with all that is wrong, each with what, got, wanted and the next step; and what `flags_of` and
    `with_demo` raise.
    """
    layers: list[tuple[Origin, Mapping[str, Any]]] = [] if file is None else [(Origin.FILE, _read(file))]
    layers.append((Origin.ENVIRONMENT, _Environment(Settings)()))
    chosen = engine or str(next((tree["engine"] for _, tree in reversed(layers) if "engine" in tree), Choice().engine))
    flags = flags_of(chosen)
    layers.append((Origin.FLAG, flags if engine is None else {"engine": engine, **flags}))
    problems = [*stray_variables(_variables(), Settings.model_fields)]
    problems += [] if file is None else secrets_in(file, layers[0][1])
    if problems:
        raise SettingsError(problems)
    values, origins = _joined(layers, file)

    def name_of(key: Key) -> str:
        return _name(key, origins.get(key, (Origin.DEFAULT,))[-1], file)

    try:
        choice = Choice.model_validate({name: values[name] for name in Choice.model_fields if name in values})
        for each in ("transformers", "vllm"):
            if each == choice.engine:
                values[each] = with_demo(each, values.get(each, {}), unguarded=choice.unguarded)
            elif each in values:  # of no account, so its model need not be named
                values[each] = {"model": "none", **values[each]}
        return Effective(Settings(**values), origins, file)
    except ValidationError as error:
        raise SettingsError([_problem(issue, name_of) for issue in error.errors(include_url=False)]) from error


def environment_name(key: Key) -> str:
    """The variable of a setting."""
    return PREFIX + NESTED.join(key).upper()


def _read(file: Path) -> dict[str, Any]:
    """The file as it is. Raises SettingsError."""
    if not file.is_file():  # the library passes over it
        raise SettingsError([f"{file}: got no such file, wanted a TOML file of settings; correct --config"])
    try:
        return dict(TomlConfigSettingsSource(Settings, file).toml_data)
    except (OSError, UnicodeDecodeError, TOMLDecodeError) as error:
        raise SettingsError([f"{file}: is no TOML file that can be read ({error}); mend it"]) from error


def _joined(
    layers: Sequence[tuple[Origin, Mapping[str, Any]]], file: Path | None
) -> tuple[dict[str, Any], dict[Key, tuple[Origin, ...]]]:
    """Each value of the last layer that has it. vLLM's flags are all there, the last layer's last, which wins there."""
    values: dict[str, Any] = {}
    origins: dict[Key, tuple[Origin, ...]] = {}
    for origin, tree in layers:
        for name, value in tree.items():
            if name not in SECTIONS:
                values[name], origins[name,] = value, (origin,)
                continue
            if not isinstance(value, Mapping):
                wanted = f"wanted a table [{name}] of settings"
                raise SettingsError([f"{_name((name,), origin, file)}: got {value!r}, {wanted}"])
            section = values.setdefault(name, {})
            for key, each in value.items():
                before = section.get(key)
                if (
                    (name, key) == ("vllm", "flags")
                    and isinstance(each, list | tuple)
                    and isinstance(before, list | tuple)
                ):
                    section[key] = [*before, *each]
                    origins[name, key] += (origin,)
                else:
                    section[key], origins[name, key] = each, (origin,)
    return values, origins


def _name(key: Key, origin: Origin, file: Path | None) -> str:
    """A setting as whoever gave it knows it."""
    match origin:
        case Origin.FLAG:
            return "--" + key[-1].replace("_", "-")
        case Origin.ENVIRONMENT:
            return environment_name(key)
        case Origin.FILE:
            return f"{file}: {'.'.join(key)}"
        case Origin.DEFAULT:
            return ".".join(key)


def _problem(issue: Any, name_of: Any) -> str:
    key = tuple(str(part) for part in issue["loc"][:2])
    known = key[0] in SECTIONS and len(key) == 2
    name = name_of(key if known else key[:1])
    if issue["type"] == "extra_forbidden":  # its value may be anything, a secret too
        names = SECTIONS[key[0]].model_fields if known else Settings.model_fields
        return f"{name}: is no setting; {_nearest(key[-1], names)}"
    return f"{name}: got {str(issue['input'])[:80]!r}: {issue['msg']}"


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"wanted one of {', '.join(names)}"


def _variables() -> dict[str, str]:
    """Every setting's variable by its words alone."""
    keys: list[Key] = [(name,) for name in Choice.model_fields]
    keys += [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]
    return {"_".join(key): environment_name(key) for key in keys}
