"""GET /ui: the operator's page. Files that hold no secret: the page asks for a key and calls the API with it."""

from importlib.resources import files

from fastapi import APIRouter, Response

from server.auth import ANONYMOUS
from server.context import CallerDep, ServicesDep
from server.errors import NoSuchRouteError
from server.routes.reading import reads

router = APIRouter()

_FOLDER = files("server") / "ui"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


@reads(router, "/ui")
async def page() -> Response:
    """The page itself."""
    return _file("index.html")


@reads(router, "/ui/session")
async def session(services: ServicesDep, caller: CallerDep) -> dict[str, str | None]:
    """The role of the key that came along, None where one is needed: never a 401, which a browser logs as an error."""
    unknown = services.keys.file is not None and caller.name == ANONYMOUS
    return {"role": None if unknown else caller.role.value}


@reads(router, "/ui/{name}")
async def part(name: str) -> Response:
    """What the page loads."""
    return _file(name)


def _file(name: str) -> Response:
    """Raises NoSuchRouteError for what is not the page's."""
    if name not in FILES:
        raise NoSuchRouteError(f"The page has no file {ascii(name)[:60]}.")
    return Response((_FOLDER / name).read_bytes(), media_type=FILES[name], headers=_HEADERS)


FILES = {each.name: _TYPES[each.name[each.name.rindex(".") :]] for each in _FOLDER.iterdir()}
"""Names and media types, read once: nothing else is ever opened."""
