"""Routes that take a JSON body: a key may be there once, and there are not many thousand objects.

JSON's readers take the last of two as a rule. A gateway that looks at the first would have looked at another request
than the one that is answered. Objects are counted while they are read: each is checked by itself, on the event loop.
"""

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.context import Services, context_of
from server.errors import InvalidRequestError
from server.generation import disconnected

MOST_OBJECTS = 10_000
"""In one body. It takes a tenth of a millisecond to check one, such as a part of a message."""


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs. Raises InvalidRequestError for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidRequestError(f"The body has the key {ascii(twice)[:60]} more than once in one object; send one.")
    return found


class _Posted(Request):
    async def json(self) -> Any:
        """Raises InvalidRequestError for a key that is there twice, or for more than MOST_OBJECTS objects, and what
        `LargeBodies.read` does.
        """
        count, body = 0, await self.body()

        def counted(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal count
            count += 1
            if count > MOST_OBJECTS:
                raise InvalidRequestError(f"The body has more than {MOST_OBJECTS} objects; send fewer at a time.")
            return each_once(pairs)

        services: Services = self.app.state.services
        caller = context_of(self.scope).caller
        assert caller is not None, "the key is checked before"
        return await services.large_bodies.read(
            caller.tenant,
            len(body),
            lambda: json.loads(body, object_pairs_hook=counted),
            lambda: disconnected(self.receive),
        )


class PostedRoute(APIRoute):
    """A route whose body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls."""
        handle = super().get_route_handler()

        async def read_once(request: Request) -> Response:
            return await handle(_Posted(request.scope, request.receive))

        return read_once
