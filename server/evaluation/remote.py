"""What a running server says of itself."""

from typing import Any

from server.errors import ServerUnreachableError


def fetch_server(url: str, key: str | None) -> dict[str, Any]:
    """What the server says of itself. Raises ServerUnreachableError."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=10) as client:
            ready, guards, models = client.get("/ready"), client.get("/v1/guards"), client.get("/v1/models")
            for response in (guards, models):
                response.raise_for_status()
            return {
                "ready": ready.status_code == 200,
                "state": ready.json(),
                "models": models.json()["data"],
                "guards": guards.json()["data"],
            }
    except httpx.HTTPStatusError as error:
        raise ServerUnreachableError(
            f"{url}: got HTTP {error.response.status_code} ({error.response.text[:200]}); "
            "wanted a running skillguard server and, where it has keys, one of them by $SKILLGUARD_KEY or --key-file"
        ) from error
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ServerUnreachableError.at(url, error) from error
