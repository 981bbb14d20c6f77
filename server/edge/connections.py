"""The open connections: how many there may be, which a new one replaces, and how long each may wait for its peer."""

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from server.config import Network, ServerConfig

logger = logging.getLogger("skillguard.server")

_TICK_SECONDS = 0.5
_SHARE_REPLACED = 16
"""Of how many waiting connections one is replaced at once, so that a flood of new ones does not search each time."""
_IPV6_PREFIX = 64
"""One subscriber has all addresses of such a network."""
_LOGGED_EACH_SECONDS = 60.0
MAX_ABANDONED = 16
"""Requests with a body, of one address, that are left before their answers begin; so many are forgiven each second.
Each costs what it costs to read the most that a body may hold, and a sender who waits for no answer sends hundreds a
second.
"""
_MANY_SOURCES = 10_000


class Phase(StrEnum):
    """What a connection is at."""

    HEAD = "head"
    """No request yet, or its head comes in."""
    BODY = "body"
    """The body comes in, whether the answer is out or not."""
    ANSWER = "answer"
    """The request is whole and is being answered: nothing is asked of the other end but to read."""
    KEPT = "kept"
    """All is answered; another request may come."""


class Ended(StrEnum):
    """Why a connection was ended that its other end had not given up."""

    HEADER_TIMEOUT = "header_timeout"
    BODY_TIMEOUT = "body_timeout"
    SEND_TIMEOUT = "send_timeout"
    REPLACED = "replaced"
    ADDRESS_FULL = "address_full"
    FULL = "full"
    HANG_UPS = "hang_ups"
    MALFORMED = "malformed"
    HEADERS_TOO_LARGE = "headers_too_large"
    PIPELINE = "pipeline"
    STOPPED = "stopped"


class Connection(Protocol):
    """What the table asks of one."""

    phase: Phase
    since: float
    """When it came to its phase."""
    unread: int
    """Bytes of answers that wait for the other end, when they were last looked at."""
    unread_since: float | None
    """Since when it has read none of them; None where none wait."""

    def unread_now(self) -> int:
        """Bytes of answers that wait for the other end."""
        ...

    def end(self, why: Ended) -> None:
        """Ends it; with an answer that says why, where one can be given."""
        ...


@dataclass(frozen=True)
class Bounds:
    """How many, and how long. Seconds."""

    most: int
    most_of_an_address: int
    proxies: tuple[Network, ...]
    header_timeout: float
    body_timeout: float
    send_timeout: float

    @classmethod
    def of(cls, config: ServerConfig) -> "Bounds":
        """As the settings say."""
        return cls(
            most=config.max_connections,
            most_of_an_address=config.max_connections_per_address,
            proxies=config.trusted_proxies,
            header_timeout=config.header_timeout_seconds,
            body_timeout=config.body_timeout_seconds,
            send_timeout=config.send_timeout_seconds,
        )


class Connections:
    """Keeps within its bounds whatever connects. A connection that waits for its other end makes room for a new one;
    one that is being answered never does.
    """

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        self.clock = clock
        self._sources: dict[Connection, str | None] = {}
        self._of_source: dict[str, set[Connection]] = {}
        self._abandoned: dict[str, tuple[float, float]] = {}
        """By source: how many are not forgiven yet, and as of when."""
        self._ended: Counter[Ended] = Counter()
        self._logged: Counter[Ended] = Counter()
        self._logged_at = -_LOGGED_EACH_SECONDS
        self._tick: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def ended(self) -> Mapping[Ended, int]:
        """How many were ended, by why."""
        return {why: self._ended[why] for why in Ended}

    def add(self, connection: Connection, address: str) -> Ended | None:
        """Takes a new one in, or says why not. Its phase and times are set."""
        source = self._source(address)
        self._sources[connection] = source
        if source is not None:
            siblings = self._of_source.setdefault(source, set())
            siblings.add(connection)
            if len(siblings) > self.bounds.most_of_an_address and not self._replaced(siblings, connection):
                return Ended.ADDRESS_FULL
        if len(self._sources) > self.bounds.most and not self._replaced(self._sources.keys(), connection):
            return Ended.FULL
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._ticked)
        return None

    def remove(self, connection: Connection) -> None:
        """It is gone."""
        source = self._sources.pop(connection, None)
        if source is not None:
            siblings = self._of_source[source]
            siblings.discard(connection)
            if not siblings:
                del self._of_source[source]

    def abandoned(self, connection: Connection) -> None:
        """Its other end gave up a request whose answer had not begun."""
        if (source := self._sources.get(connection)) is not None:
            self._abandoned[source] = (self._unforgiven(source) + 1, self.clock())
        if len(self._abandoned) > _MANY_SOURCES:
            self._abandoned = {each: held for each, held in self._abandoned.items() if self._unforgiven(each)}

    def must_wait(self, connection: Connection) -> bool:
        """Whether its address has given up too many of late."""
        source = self._sources.get(connection)
        return source is not None and self._unforgiven(source) >= MAX_ABANDONED

    def _unforgiven(self, source: str) -> float:
        held, since = self._abandoned.get(source, (0.0, 0.0))
        return max(0.0, held - MAX_ABANDONED * (self.clock() - since))

    def count(self, why: Ended) -> None:
        """One was ended."""
        self._ended[why] += 1

    def sweep(self) -> None:
        """Ends those whose other end took too long."""
        now = self.clock()
        for connection in [*self._sources]:
            if (why := self._overdue(connection, now)) is not None:
                connection.end(why)
        self._log(now)

    def end_all(self) -> None:
        """Whatever is still there: the server stops."""
        for connection in [*self._sources]:
            connection.end(Ended.STOPPED)

    def _overdue(self, connection: Connection, now: float) -> Ended | None:
        if connection.unread_since is not None:
            if (unread := connection.unread_now()) < connection.unread:
                connection.unread_since = now
            elif now - connection.unread_since > self.bounds.send_timeout:
                return Ended.SEND_TIMEOUT
            connection.unread = unread
        waited = now - connection.since
        if connection.phase is Phase.HEAD and waited > self.bounds.header_timeout:
            return Ended.HEADER_TIMEOUT
        if connection.phase is Phase.BODY and waited > self.bounds.body_timeout:
            return Ended.BODY_TIMEOUT
        return None

    def _replaced(self, among: Collection[Connection], new: Connection) -> bool:
        """Ends those that have waited longest, if any wait; those that never asked for anything first."""
        for phase in (Phase.HEAD, Phase.BODY, Phase.KEPT):
            if waiting := [each for each in among if each.phase is phase and each is not new]:
                waiting.sort(key=lambda each: each.since)
                for each in waiting[: 1 + len(waiting) // _SHARE_REPLACED]:
                    self.remove(each)  # it may not go at once, and must not be ended for the next one too
                    each.end(Ended.REPLACED)
                return True
        return False

    def _source(self, address: str) -> str | None:
        """Whose connections are counted together; None for those of a trusted proxy, which are many people's."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # with a zone, as link-local ones have
            return address
        if isinstance(found, ipaddress.IPv6Address):
            found = found.ipv4_mapped or found
        if any(found in network for network in self.bounds.proxies):
            return None
        if isinstance(found, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))
        return str(found)

    def _ticked(self) -> None:
        self.sweep()
        again = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._ticked) if self._sources else None
        self._tick = again

    def _log(self, now: float) -> None:
        """One line for all that were ended, once in a while: an attack must not fill the disk."""
        if now - self._logged_at < _LOGGED_EACH_SECONDS or self._ended == self._logged:
            return
        new = self._ended - self._logged
        told = ", ".join(f"{why.value} {count}" for why, count in sorted(new.items()))
        logger.warning("connections ended by the server: %s; %d are open", told, len(self))
        self._logged, self._logged_at = self._ended.copy(), now
