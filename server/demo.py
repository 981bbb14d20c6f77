"""What is served where no model was named: the demo, with its guard for mathematics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.errors import ConfigError

DEMO = Path(__file__).resolve().parents[1] / "artifacts" / "demo"
_GUARD = "ksd-mathematics"
_DTYPE = "float32"


def with_demo(engine: str, given: Mapping[str, Any], *, unguarded: bool) -> dict[str, Any]:
    """An engine's options, and the demo's where they name no model.

    Raises ConfigError for a server without guards that was not asked for.
    """
    options, named = dict(given), given.get("model") is not None
    if not named:
        options["model"] = str(DEMO / "model")
        options.setdefault("served_name", "skillguard-demo")
        # vLLM's own default is a 16-bit format even for a float32 model, which the demo's artifacts would not fit.
        flags = given.get("flags", ())
        # What is no list is refused with the other values.
        if engine == "vllm" and isinstance(flags, list | tuple) and "--dtype" not in _names(flags):
            options["flags"] = ("--dtype", _DTYPE, *flags)
    if unguarded and given.get("artifacts"):
        raise ConfigError("--unguarded: got --artifacts as well; give one of them")
    if not unguarded and not given.get("artifacts"):
        if named:
            raise ConfigError(
                "--artifacts: got none, so nothing would be guarded; name artifact folders "
                "(`skillguard calibrate` makes them), or say --unguarded"
            )
        options["artifacts"] = (DEMO / "guards" / _GUARD,)
    return options


def _names(flags: Sequence[object]) -> set[str]:
    return {str(flag).partition("=")[0] for flag in flags}
