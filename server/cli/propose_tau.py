"""`skillguard propose-tau`: a threshold for a wanted share of false abstentions. It changes nothing."""

import argparse
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guards.methods.loaded import LoadedGuard
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
    parser.add_argument(
        "--artifact",
        type=Path,
        help="the guard's artifact, by whose quantiles a histogram is read; with audit files, to be told the command "
        "that takes the proposal over",
    )
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
    if args.prometheus and not args.artifact:
        raise ConfigError("--prometheus: got no --artifact, by whose quantiles a histogram is read; name the guard's")
    artifact = _read_artifact(args.artifact) if args.artifact else None
    found = _of_prometheus(args, artifact) if artifact and args.prometheus else _of_files(args, artifact)
    if args.json:
        print(json.dumps(shown(found, args.guard), indent=1))
    else:
        print(text(found, args))
    return 0


@dataclass(frozen=True)
class Found:
    """A proposal. `taus` by part, those that hold of parts which read prompts; `every`: the proposed ones of all parts
    in their order, None where no artifact says which there are.
    """

    proposal: "Proposal"
    taus: Mapping[str, float]
    every: Sequence[float] | None
    notes: Sequence[str]

    def command(self, guard: str) -> str | None:
        """What takes the proposal over on a server."""
        taus = map(repr, self.every or ())
        return None if self.every is None else shlex.join(["skillguard", "guards", "set-tau", guard, "--taus", *taus])


def _read_artifact(folder: Path) -> "LoadedGuard":
    from guards.methods.loaded import read_guards

    (loaded,) = read_guards([folder], verifiable=False).values()
    return loaded


def _found(
    proposal: "Proposal", held: Mapping[str, float], artifact: "LoadedGuard | None", notes: Sequence[str]
) -> Found:
    """With what holds of each part: as it was read, or else the artifact's own.

    A command would set all parts' taus for everybody. So there is none where readings are by other taus than the
    artifact's: who moved them, and for whom, no reading tells.
    """
    from guards.core.verdict import Stage

    if artifact is None:
        return Found(proposal, held, None, [*notes, "--artifact FOLDER prints the command that takes this over"])
    pairs = [*zip(artifact.bound.parts, artifact.bound.taus, strict=True)]
    asking = {part.label: own for part, own in pairs if part.reads(Stage.PROMPT)}
    now = {label: held.get(label, own) for label, own in asking.items()}
    if moved := [label for label, own in asking.items() if not math.isclose(now[label], own, rel_tol=1e-6)]:
        why = f"readings are by other taus than the artifact's ({', '.join(moved)}): a tenant's, or moved ones"
        return Found(proposal, held, None, [*notes, f"{why}; set by hand what is proposed"])
    every = [own * proposal.factor if label in asking else own for label, own in ((p.label, own) for p, own in pairs)]
    return Found(proposal, now, every, [*notes, "the command gives answers the artifact's taus"])


def _of_files(args: argparse.Namespace, artifact: "LoadedGuard | None") -> Found:
    from server.audit.proposal import propose, read_readings
    from server.errors import AuditFilesError

    readings = read_readings(_records(args.paths, args.since), args.guard)
    if artifact is not None and artifact.artifact.digest != readings.digest:
        raise AuditFilesError(
            f"{args.artifact}: is artifact {artifact.artifact.digest[:24]}, and the last readings are of "
            f"{readings.digest[:24]}; name the one that was served"
        )
    notes = [f"readings are of artifact {readings.digest[:24]}"]
    if readings.other:
        notes.append(f"{readings.other} readings were left out: another artifact or other taus held")
    if readings.answers:
        notes.append(f"{readings.answers} answers fired while they were written; taus of answers are not proposed")
    return _found(propose(readings.over_tau, args.share, args.confidence), readings.taus, artifact, notes)


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


def _of_prometheus(args: argparse.Namespace, artifact: "LoadedGuard") -> Found:
    from server.audit.prometheus import read_counts
    from server.audit.proposal import propose_by_quantiles
    from server.errors import AuditFilesError

    quantiles = artifact.artifact.manifest.calibration.quantiles
    if quantiles is None:
        raise AuditFilesError(f"{args.artifact}: holds no quantiles of scores; calibrate it again, or read audit files")
    counts = read_counts(args.prometheus, args.guard, args.window)
    notes = ["only the histogram's own levels can be proposed; readings in audit files are finer"]
    return _found(propose_by_quantiles(counts, quantiles, args.share, args.confidence), {}, artifact, notes)


def shown(found: Found, guard: str) -> dict[str, object]:
    """As JSON."""
    proposal = found.proposal
    return {
        "guard": guard,
        "factor": proposal.factor,
        "factor_interval": [proposal.low, proposal.high],
        "taus": {part: {"now": tau, "proposed": tau * proposal.factor} for part, tau in found.taus.items()},
        "command": found.command(guard),
        "prompts": proposal.total,
        "fire_now": proposal.before,
        "would_fire": proposal.hits,
        "share": proposal.hits / proposal.total,
        "share_interval": list(proposal.share),
        "notes": list(found.notes),
    }


def text(found: Found, args: argparse.Namespace) -> str:
    """For a person."""
    proposal = found.proposal
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
        for part, tau in found.taus.items()
    ]
    lines += [f"  note       {note}" for note in found.notes]
    if (command := found.command(args.guard)) is not None:
        lines.append(f"  take over  {command}")
    return "\n".join([*lines, "  note       all of these prompts counted as innocent; nothing was changed"])
