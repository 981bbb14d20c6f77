"""Routes that only tell: whatever is served on GET is served on HEAD."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter

Route = TypeVar("Route", bound=Callable[..., Any])


def reads(router: APIRouter, path: str) -> Callable[[Route], Route]:
    """Decorates what answers GET and HEAD on a path. FastAPI, unlike Starlette, adds no HEAD by itself."""
    return router.api_route(path, methods=["GET", "HEAD"])
