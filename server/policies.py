"""Which guards are enforced and which only watch.

The operator decides: for all callers, and in the keys file for the holder of one key. A request holds no field for it:
a caller who could switch a guard to `shadow` could switch it off.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from guards.core.verdict import GuardKind, GuardMode
from server.engines.base import GuardInfo
from server.errors import ConfigError


def guard_modes(guards: Sequence[GuardInfo], shadow: Collection[str], where: str = "shadow") -> Mapping[str, GuardMode]:
    """A mode for every guard of the engine; `where` says in an error which setting is wrong.

    A name the engine does not have is an error: a typing mistake there would enforce a guard that was meant to watch.
    So is an intervention, which has no hits to count and acts in every mode.
    """
    names = [guard.name for guard in guards]
    if unknown := sorted(set(shadow) - set(names)):
        raise ConfigError(
            f"{where}: no guard named {', '.join(map(repr, unknown))}; known: {', '.join(names) or 'none'}. "
            "Correct the name, or load the artifact"
        )
    if acting := [guard.name for guard in guards if guard.name in shadow and guard.kind is GuardKind.INTERVENTION]:
        raise ConfigError(
            f"{where}: guard {acting[0]!r} changes activations and cannot only watch; "
            "leave it out here, or do not load its artifact"
        )
    return MappingProxyType({name: GuardMode.SHADOW if name in shadow else GuardMode.ENFORCE for name in names})
