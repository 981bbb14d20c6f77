"""`skillguard inspect`: an artifact, or a running server, as a readable table."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.client import add_key_file, read_key
from server.errors import ConfigError
from server.evaluation.remote import fetch_server

if TYPE_CHECKING:
    from rich.table import Table

    from guards.artifact.manifest import Canary, Rate
    from guards.artifact.store import Artifact
    from guards.contract.guard import Bound


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="show an artifact or a running server",
        description="Shows an artifact folder, or the guards of a running server, as a table.",
    )
    parser.add_argument("target", help="artifact folder, or the server's address (http://127.0.0.1:8000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_key_file(parser, "a key of the server's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one table. Exit status 1 when a server's guards are not verified. Raises ConfigError, ArtifactError."""
    from rich.console import Console

    if args.target.startswith(("http://", "https://")):
        report = fetch_server(args.target.rstrip("/"), read_key(args.key_file))
        if args.json:
            print(json.dumps(report, indent=1))
        else:
            Console().print(server_table(args.target, report))
        return 0 if report["ready"] else 1
    if ":" in args.target and not Path(args.target).exists():
        raise ConfigError(
            f"{args.target}: got no such folder; wanted an artifact's, or a server's address, which begins with "
            "http:// or https://"
        )
    import torch

    from guards.artifact.store import read_artifact
    from guards.methods.registry import load_guard, method_of
    from guards.model.shard import WHOLE

    artifact = read_artifact(Path(args.target))
    guard = load_guard(artifact)
    if args.json:
        shown = artifact.manifest.model_dump(mode="json")
        print(json.dumps({**shown, "digest": artifact.digest, "signed_by": artifact.signers}, indent=1))
    else:
        Console().print(artifact_table(artifact, method_of(artifact).bind(guard, torch.device("cpu"), WHOLE)))
    return 0


def server_table(url: str, report: dict[str, Any]) -> "Table":
    """One line per guard."""
    from rich.table import Table

    from guards.artifact.pins import vouched

    model = ", ".join(entry["id"] for entry in report["models"])
    state = "ready" if report["ready"] else "NOT READY"
    table = Table(title=f"{url}: {model}, {state}", title_justify="left")
    columns = ("guard", "skill", "method", "mode", "scope", "layers", "changed by", "verified", "template", "vouched")
    for column in (*columns, "frames"):
        table.add_column(column)
    for guard in report["guards"]:
        table.add_row(
            *(str(guard.get(column, "-")) for column in ("name", "skill", "method", "mode", "scope")),
            ", ".join(map(str, guard["layers"])) if "layers" in guard else "operators only",
            ", ".join(guard["changed_by"]) or "-" if "changed_by" in guard else "operators only",
            "yes" if guard.get("verified") else "NO",
            str(guard.get("template", "-")),
            vouched(guard["pinned"], guard["signed_by"]).removeprefix(", ") or "-"
            if "pinned" in guard
            else "operators only",
            ", ".join(map(repr, guard.get("frames", ()))),
        )
    return table


def _rate(rate: "Rate | None") -> str:
    if rate is None:
        return "not measured"
    return f"{rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}] ({rate.hits} of {rate.total})"


def _canaries(canaries: "Sequence[Canary]") -> str:
    firing, with_text = sum(each.fires for each in canaries), sum(each.source is not None for each in canaries)
    return f"{len(canaries)}, {firing} of them fire, {with_text} carry messages or text"


def _places(bound: "Bound") -> str:
    layers: dict[str, list[int]] = {}
    for layer, site in sorted({column.place for column in bound.columns}):
        layers.setdefault(site, []).append(layer)
    return "; ".join(f"{site} of layer{'s' * (len(at) > 1)} {', '.join(map(str, at))}" for site, at in layers.items())


def artifact_table(artifact: "Artifact", bound: "Bound") -> "Table":
    """Everything a person needs in order to trust an artifact, one fact a line."""
    from rich.table import Table

    from guards.artifact.pins import shown_digest

    manifest, calibration = artifact.manifest, artifact.manifest.calibration
    model = manifest.model
    table = Table(title=artifact.name, title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", overflow="fold")
    rows = [
        ("skill", manifest.skill),
        ("method", manifest.method),
        ("scope", str(manifest.scope)),
        ("reads" if bound.health is None else "changes", _places(bound)),
        ("model", f"{model.architecture}, {model.layers} layers, d_ff {model.d_ff}, {model.dtype}"),
        ("weights", (model.weights_sha256 or "NOT BOUND: import again with --model")[:24]),
        ("quantisation", model.quantization or "none"),
        ("frames", ", ".join(map(repr, calibration.frames)) or "unknown"),
        ("recall", _rate(calibration.recall)),
        ("false abstention", _rate(calibration.false_abstention)),
        ("canaries", _canaries(manifest.canaries)),
        ("digest", shown_digest(artifact.digest)),
        ("signed by", "\n".join(artifact.signers) or "nobody"),
    ]
    for name, value in manifest.parameters.items():
        if isinstance(value, list):
            rows += [(f"{name}[{i}]", ", ".join(f"{k} {v}" for k, v in row.items())) for i, row in enumerate(value)]
        else:
            rows.append((name, str(value)))
    rows += [(f"{source.role} data", f"{source.line}, {source.tokens} tokens") for source in calibration.sources]
    rows += [("note", note) for note in calibration.notes]
    for what, value in rows:
        table.add_row(what, value)
    return table
