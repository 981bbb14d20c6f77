"""Runs a built image as docs/operating.md says, and sees whether it does what is said of it. It takes root.

    buildah build --format docker -f docker/cpu.Dockerfile -t skillguard:cpu .
    python -m benchmarks.image skillguard:cpu

An image of Docker's own store is `docker-daemon:skillguard:cpu`. Docker itself is not needed: see container.py.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.image import checks
from benchmarks.image.container import ImageError, outside, unpacked
from benchmarks.report import publish


def _compressed(image: str) -> int:
    """Bytes that a registry would send."""
    with tempfile.TemporaryDirectory() as folder:
        outside("buildah", "push", "--quiet", image, f"oci:{folder}/image")
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _largest(root: Path, packages: Path) -> list[dict[str, Any]]:
    """The five largest packages, and all else."""
    sizes: dict[str, int] = {}
    for path, size in checks.files(root):
        inside = path.relative_to(packages).parts[0] if path.is_relative_to(packages) else ""
        sizes[inside.removesuffix(".libs")] = sizes.get(inside.removesuffix(".libs"), 0) + size
    ordered = sorted((name for name in sizes if name), key=lambda name: -sizes[name])[:5]
    return [{"package": name, "bytes": sizes[name]} for name in ordered]


def main() -> int:
    """Checks, publishes, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="as `buildah from` names it")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def check(name: str, seen: Callable[[], str]) -> None:
        rows.append({"check": name, "seen": seen()})
        print(f"{name}: {rows[-1]['seen']}", file=sys.stderr)

    try:
        with unpacked(args.image) as image:
            check("OCI labels", lambda: checks.labels(image))
            check("SBOM", lambda: checks.bill(image))
            check("slim", lambda: checks.slim(image))
            with image.started("sleep", "infinity") as idle:
                check("user", lambda: checks.rights(idle))
                check("root", lambda: checks.read_only(idle))
                checks.expect(not checks.healthy(idle, image), "HEALTHCHECK passes where no server runs")
            with image.started() as served:
                checks.ready(served)
                checks.expect(checks.healthy(served, image), "HEALTHCHECK fails while the server is ready")
                check("HEALTHCHECK", lambda: "fails without a server, passes once it is ready")
                check("README's request", lambda: checks.readme_request(served))
                check("written", lambda: checks.written(served))
                peak = int(served.run("cat", "/proc/1/status").stdout.split("VmHWM:")[1].split()[0]) * 1024
                check("SIGTERM", lambda: checks.ends(served))
            (packages,) = image.root.glob("opt/skillguard/lib/python3*/site-packages")
            total = sum(size for _, size in checks.files(image.root))
            publish(
                "image",
                rows,
                image={name: checks.components(image)[name] for name in ("skillguard", "torch", "transformers")},
                bytes=total,
                compressed_bytes=_compressed(image.name),
                peak_memory_bytes=peak,
                largest=_largest(image.root, packages),
            )
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
