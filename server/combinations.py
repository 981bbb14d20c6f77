"""Which guards change what others read: said at start, since a detector's rates were measured without."""

from collections.abc import Mapping, Sequence

from guards.core.beside import Beside


def combined(among: Mapping[str, Beside]) -> list[str]:
    """A sentence for each set of interventions that change what guards read, and for each that act at one place."""
    reached: dict[tuple[str, ...], list[str]] = {}
    for name, beside in among.items():
        if beside.changed_by:
            reached.setdefault(beside.changed_by, []).append(name)
    sentences = [
        f"{_listed('guard', names)} read{'s' if len(names) == 1 else ''} what {_listed('intervention', changed_by)} "
        f"change{'s' if len(changed_by) == 1 else ''}: canaries are sent {_under(changed_by)}; rates were measured "
        "without"
        for changed_by, names in reached.items()
    ]
    return sentences + [
        f"intervention {name} acts where {', '.join(beside.acts_after)} did before, in the order of `artifacts`"
        for name, beside in among.items()
        if beside.acts_after
    ]


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _under(changed_by: Sequence[str]) -> str:
    if len(changed_by) == 1:
        return "with it on and with it off"
    return f"under each of the {2 ** len(changed_by)} sets of them"
