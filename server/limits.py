"""How much a tenant may ask for at a time and in a minute.

Own code, since no library here lets a bucket fall below zero, and what an answer costs is known only once it is
written: `limits` refuses a cost that does not fit and then counts nothing of it, aiolimiter waits.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.auth import Caller, TenantPolicy
from server.engines.events import Event, Finish
from server.errors import LimitError

Spend = Callable[[int], None]
"""Takes that many tokens of a tenant's minute. Never refuses: what was read and written was."""


class Bucket:
    """Holds a minute's allowance and refills evenly. It may owe."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def resize(self, per_minute: int) -> None:
        """Another limit from now on; what was taken stays taken."""
        self._level += per_minute - self.per_minute
        self.per_minute = per_minute

    def seconds_until_one(self, now: float) -> float:
        """0 where one can be taken."""
        self._refill(now)
        return max(0.0, (1 - self._level) * 60 / self.per_minute)

    def take(self, amount: int, now: float) -> None:
        """Takes what may be more than it holds."""
        self._refill(now)
        self._level -= amount

    def _refill(self, now: float) -> None:
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now


class _Usage:
    """One tenant's."""

    def __init__(self) -> None:
        self.running = 0
        self.buckets: dict[str, Bucket] = {}

    def bucket(self, of: str, per_minute: int | None, now: float) -> Bucket | None:
        """None without a limit."""
        if per_minute is None:
            self.buckets.pop(of, None)
            return None
        bucket = self.buckets.setdefault(of, Bucket(per_minute, now))
        if bucket.per_minute != per_minute:
            bucket.resize(per_minute)
        return bucket


class Limiter:
    """Counts by tenant, whichever of its keys asks. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[Spend]:
        """Holds one of the tenant's places. Raises LimitError, with nothing taken, where a limit is reached."""
        policy, tenant = caller.policy, caller.tenant
        usage = self._usage.setdefault(tenant, _Usage())
        now = self._clock()
        requests = usage.bucket("requests", policy.requests_per_minute, now)
        tokens = usage.bucket("tokens", policy.tokens_per_minute, now)
        _require_place(tenant, policy, usage.running)
        for what, bucket in (("requests", requests), ("tokens", tokens)):
            if bucket is not None and (seconds := bucket.seconds_until_one(now)) > 0:
                wait = math.ceil(seconds)
                raise LimitError(
                    f"Tenant {tenant!r} may use {bucket.per_minute} {what} a minute, and has; try again in {wait} s.",
                    wait,
                )
        if requests is not None:
            requests.take(1, now)
        usage.running += 1
        try:
            yield lambda amount: None if tokens is None else tokens.take(amount, self._clock())
        finally:
            usage.running -= 1


def _require_place(tenant: str, policy: TenantPolicy, running: int) -> None:
    most = policy.concurrent_requests
    if most is not None and running >= most:
        raise LimitError(f"Tenant {tenant!r} may have {most} requests at a time, and has; wait for one to end.", 1)


def spending(spend: Spend) -> Callable[[Event], None]:
    """An observer of one answer's events that spends its tokens as they come, also of an answer that is cut short."""
    spent = 0

    def observe(event: Event) -> None:
        nonlocal spent
        now = max(spent, event.completion_tokens) if isinstance(event, Finish) else spent + event.tokens
        spend(now - spent)
        spent = now

    return observe
