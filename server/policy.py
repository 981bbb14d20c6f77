"""Which guards are enforced and which only watch.

The operator decides for all callers. A request holds no field for it: a caller who could switch a guard to
`shadow` could switch it off.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from guards.verdict import GuardMode
from server.engines.base import GuardInfo
from server.errors import ConfigError


def guard_modes(guards: Sequence[GuardInfo], shadow: Collection[str]) -> Mapping[str, GuardMode]:
    """A mode for every guard of the engine. A name the engine does not have is an error: a typing mistake there
    would enforce a guard that was meant to watch."""
    names = [guard.name for guard in guards]
    if unknown := sorted(set(shadow) - set(names)):
        raise ConfigError(
            f"shadow: no guard named {', '.join(map(repr, unknown))}; known: {', '.join(names) or 'none'}. "
            "Correct the name, or load the artifact"
        )
    return MappingProxyType({name: GuardMode.SHADOW if name in shadow else GuardMode.ENFORCE for name in names})
