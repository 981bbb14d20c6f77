"""`skillguard propose-tau`: a threshold for a wanted share of false abstentions. It changes nothing."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.audit.proposal import Proposal


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "propose-tau",
        help="propose a threshold from real traffic",
        description="Proposes what to multiply a guard's taus for prompts by, so that at most a wanted share of "
        "prompts like those of the audit log would be refused. All of that traffic counts as innocent. It changes "
        "nothing.",
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="audit folder or files, written with --audit-scores GUARD"
    )
    parser.add_argument("--guard", required=True, help="the guard's name")
    parser.add_argument(
        "--share", type=float, required=True, help="wanted share of innocent prompts that are refused, such as 0.001"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="leave out what was before this time, such as 2026-11-20 or 2026-11-20T08:00; in UTC, unless it says else",
    )
    parser.add_argument(
        "--prometheus",
        metavar="ADDRESS|FILE",
        help="in the place of audit files: a Prometheus server, or a file of what /metrics said",
    )
    parser.add_argument("--window", default="7d", help="of a Prometheus server's data (default: %(default)s)")
    parser.add_argument("--artifact", type=Path, help="the guard's artifact, by whose quantiles a histogram is read")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def _time(text: str) -> datetime:
    """Raises ValueError, of which argparse makes an error that names the flag."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def run(args: argparse.Namespace) -> int:
    """Prints the proposal."""
    from server.errors import ConfigError

    for name in ("share", "confidence"):
        if not 0 < getattr(args, name) < 1:
            raise ConfigError(f"--{name}: got {getattr(args, name)}, wanted a number between 0 and 1")
    if bool(args.paths) == bool(args.prometheus):
        raise ConfigError("name audit files or folders, or --prometheus: one of the two")
    if bool(args.prometheus) != bool(args.artifact):
        raise ConfigError("--prometheus and --artifact go together: a histogram is read by the artifact's quantiles")
    proposal, taus, notes = _of_prometheus(args) if args.prometheus else _of_files(args)
    if args.json:
        print(json.dumps(shown(proposal, taus, notes, args.guard), indent=1))
    else:
        print(text(proposal, taus, notes, args))
    return 0


def _of_files(args: argparse.Namespace) -> "tuple[Proposal, Mapping[str, float], list[str]]":
    from server.audit.proposal import propose, read_readings

    readings = read_readings(_records(args.paths, args.since), args.guard)
    notes = [f"readings are of artifact {readings.digest[:24]}"]
    if readings.other:
        notes.append(f"{readings.other} readings were left out: another artifact or other taus held")
    if readings.answers:
        notes.append(f"{readings.answers} answers fired while they were written; taus of answers are not proposed")
    return propose(readings.over_tau, args.share, args.confidence), readings.taus, notes


def _records(paths: Sequence[Path], since: datetime | None) -> Iterator[Mapping[str, Any]]:
    """All records, of a chain that is whole. Raises AuditFilesError for one that is not."""
    from server.audit.verify import audit_files, read_lines
    from server.errors import AuditFilesError

    for path in audit_files(paths):
        for at, line in enumerate(read_lines(path), start=1):
            if isinstance(line, str):
                raise AuditFilesError(f"{path}, line {at}: {line}; see `skillguard audit verify`")
            if since is None or datetime.fromisoformat(str(line.fields["time"])) >= since:
                yield line.fields


def _of_prometheus(args: argparse.Namespace) -> "tuple[Proposal, Mapping[str, float], list[str]]":
    from guards.methods.loaded import read_guards
    from server.audit.prometheus import read_counts
    from server.audit.proposal import propose_by_quantiles
    from server.errors import AuditFilesError

    (loaded,) = read_guards([args.artifact], verifiable=False).values()
    quantiles = loaded.artifact.manifest.calibration.quantiles
    if quantiles is None:
        raise AuditFilesError(f"{args.artifact}: holds no quantiles of scores; calibrate it again, or read audit files")
    counts = read_counts(args.prometheus, args.guard, args.window)
    notes = ["only the histogram's own levels can be proposed; readings in audit files are finer"]
    taus = dict(zip((part.label for part in loaded.bound.parts), loaded.bound.taus, strict=True))
    return propose_by_quantiles(counts, quantiles, args.share, args.confidence), taus, notes


def shown(proposal: "Proposal", taus: Mapping[str, float], notes: Sequence[str], guard: str) -> dict[str, object]:
    """As JSON."""
    return {
        "guard": guard,
        "factor": proposal.factor,
        "factor_interval": [proposal.low, proposal.high],
        "taus": {part: {"now": tau, "proposed": tau * proposal.factor} for part, tau in taus.items()},
        "prompts": proposal.total,
        "fire_now": proposal.before,
        "would_fire": proposal.hits,
        "share": proposal.hits / proposal.total,
        "share_interval": list(proposal.share),
        "notes": list(notes),
    }


def text(proposal: "Proposal", taus: Mapping[str, float], notes: Sequence[str], args: argparse.Namespace) -> str:
    """For a person."""
    low, high = ("no bound" if bound is None else f"{bound:.4g}" for bound in (proposal.low, proposal.high))
    certain = f"{args.confidence:.0%}"
    lines = [
        f"guard {args.guard}, at most {args.share} of innocent prompts refused",
        f"  prompts    {proposal.total}, of which up to {proposal.before} fire with the taus that hold",
        f"  factor     {proposal.factor:.6g} on every tau for prompts ({certain} interval {low} to {high})",
        f"  refuses    {proposal.hits} of them, {proposal.hits / proposal.total:.5f} ({certain} interval "
        f"{proposal.share[0]:.5f} to {proposal.share[1]:.5f})",
    ]
    lines += [
        f"  tau        {part or 'the only part'}: {tau:.6g} now, {tau * proposal.factor:.6g} proposed"
        for part, tau in taus.items()
    ]
    lines += [f"  note       {note}" for note in notes]
    return "\n".join([*lines, "  note       all of these prompts counted as innocent; nothing was changed"])
