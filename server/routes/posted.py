"""Routes that take a JSON body: a key may be there once.

JSON's readers take the last of two as a rule. A gateway that looks at the first would have looked at another request
than the one that is answered.
"""

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.errors import InvalidRequestError


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs. Raises InvalidRequestError for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidRequestError(f"The body has the key {ascii(twice)[:60]} more than once in one object; send one.")
    return found


class _Posted(Request):
    async def json(self) -> Any:
        """Raises InvalidRequestError for a key that is there twice."""
        return json.loads(await self.body(), object_pairs_hook=each_once)


class PostedRoute(APIRoute):
    """A route whose body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls."""
        handle = super().get_route_handler()

        async def read_once(request: Request) -> Response:
            return await handle(_Posted(request.scope, request.receive))

        return read_once
