"""Which names this server may be called by. A browser sends the name that its page called, and a page of another origin
may have that name point here (DNS rebinding): it would then read what only this machine may.
"""

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from server.config import ServerConfig
from server.errors import MisdirectedError

ANY = "*"
_LOCAL = ("localhost", "*.localhost")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(:[0-9]*)?")


def names_of(config: ServerConfig) -> tuple[str, ...]:
    """Whatever the settings allow. A key is what protects a server that has keys: no page has one."""
    if config.allowed_hosts:
        return config.allowed_hosts
    return () if config.listens_on_loopback and config.api_keys_file is None else (ANY,)


class HostMiddleware:
    """Refuses requests that were meant for another host. Addresses and localhost are no names that others can point."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = (*_LOCAL, *names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and ANY not in self._names:
            for name, value in scope["headers"]:
                if name == b"host" and not self._ours(value.decode("latin-1")):
                    raise MisdirectedError(
                        f"This server is not called {ascii(value.decode('latin-1'))[1:101]}; its operator can say that "
                        "it is (--allowed-hosts)."
                    )
        await self._app(scope, receive, send)

    def _ours(self, authority: str) -> bool:
        found = _AUTHORITY.fullmatch(authority.strip().lower())
        if found is None:
            return False
        host = found[1].strip("[]").removesuffix(".")
        return _is_address(host) or any(_matches(host, name) for name in self._names)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _matches(host: str, name: str) -> bool:
    return host.endswith(name[1:]) if name.startswith("*.") else host == name
