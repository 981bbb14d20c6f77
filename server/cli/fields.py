"""Command-line options made from a settings model, so that names, defaults and help have one home."""

import argparse
import shlex
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from server.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)


def add_fields(parser: argparse._ArgumentGroup, model: type[BaseModel], *names: str) -> None:
    """Adds one `--field-name` per field; a bool is a switch. Values are converted and checked by `build_settings`.

    A field's title is what help shows for its value; without one it is made of the field's type or name.
    """
    for name in names:
        field = model.model_fields[name]
        option = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            parser.add_argument(
                option, dest=name, action="store_true", default=argparse.SUPPRESS, help=field.description
            )
            continue
        many = get_origin(field.annotation) is tuple
        usual = shlex.join(map(str, field.default)) if many and field.default else field.default
        default = "" if field.is_required() or usual in (None, (), {}) else f" (default: {usual})".replace("%", "%%")
        parser.add_argument(
            option,
            dest=name,
            default=argparse.SUPPRESS,
            nargs="+" if many else None,
            metavar=field.title or _metavar(name, field.annotation),
            help=(field.description or "").replace("%", "%%") + default,
        )


def _metavar(name: str, annotation: Any) -> str:
    """Choices of a Literal or an enum, INT or FLOAT of a number, and else the last word of the name."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if annotation in (int, float):
        return str(annotation.__name__).upper()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(choice.value) for choice in annotation)
    return name.rpartition("_")[2].upper()


def build_settings(model: type[Settings], args: argparse.Namespace, /, **fixed: Any) -> Settings:
    """The settings that were given, over the model's defaults.

    Raises ConfigError naming the option, what was got and what was wanted.
    """
    values = {name: value for name, value in vars(args).items() if name in model.model_fields} | fixed
    try:
        return model.model_validate(values)
    except ValidationError as error:
        issue = error.errors(include_url=False)[0]
        option = "--" + str(issue["loc"][0] if issue["loc"] else "?").replace("_", "-")
        raise ConfigError(f"{option}: got {issue['input']!r}: {issue['msg']}") from error
