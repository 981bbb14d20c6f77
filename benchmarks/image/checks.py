"""What is asked of an image. Each check returns what it saw, in a few words, or raises ImageError."""

import json
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.image.container import Image, ImageError, Running
from benchmarks.serving import ROOT, await_address, drain, in_banner

SBOM = Path("opt/skillguard/sbom.cdx.json")
LABELS = ("title", "description", "version", "revision", "created", "base.name")
NOT_NEEDED = ("cc", "gcc", "g++", "clang", "make", "pip", "pip3")
WRITABLE, NOT_WRITABLE = "/tmp", ("/", "/opt/skillguard", "/etc", "/run", "/usr/local", "/var/tmp")


def expect(condition: bool, what: str) -> None:
    """Raises ImageError where something is not so."""
    if not condition:
        raise ImageError(what)


def labels(image: Image) -> str:
    """The labels that OCI names, each with a value."""
    found = {name: (image.config["Labels"] or {}).get(f"org.opencontainers.image.{name}") for name in LABELS}
    lacking = [name for name, value in found.items() if value in (None, "", "unknown")]
    expect(not lacking, f"labels without a value: {', '.join(lacking)}; give --build-arg VERSION, REVISION and CREATED")
    installed = components(image)["skillguard"]
    expect(found["version"] == installed, f"label version: got {found['version']}, installed is {installed}")
    return f"{len(found)} labels: {', '.join(LABELS)}"


def components(image: Image) -> dict[str, str]:
    """Versions by package, as the image's SBOM has them."""
    listed: dict[str, Any] = json.loads((image.root / SBOM).read_text(encoding="utf-8"))
    expect(listed["bomFormat"] == "CycloneDX", f"/{SBOM}: got {listed['bomFormat']}, wanted CycloneDX")
    return {_plain(entry["name"]): entry["version"] for entry in listed["components"]}


def bill(image: Image) -> str:
    """The SBOM names just what is installed."""
    (packages,) = image.root.glob("opt/skillguard/lib/python3*/site-packages")
    installed = {_plain(each.name): each.version for each in metadata.distributions(path=[str(packages)])}
    listed = components(image)
    differ = sorted(name for name, _ in installed.items() ^ listed.items())
    expect(not differ, f"/{SBOM} and what is installed differ in {', '.join(differ)}")
    return f"CycloneDX, {len(listed)} packages, as installed"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def files(root: Path) -> Iterator[tuple[Path, int]]:
    """Every plain file, once, with its size."""
    seen = set()
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_ino not in seen:
                seen.add(found.st_ino)
                yield path, found.st_size


def slim(image: Image) -> str:
    """No compiler, no installer, nothing that raises rights, no tests of packages."""
    folders = [image.root / each.lstrip("/") for each in image.environment["PATH"].split(":")]
    tools = [name for name in NOT_NEEDED if any((folder / name).exists() for folder in folders)]
    expect(not tools, f"found {', '.join(tools)}")
    raising = [str(path.relative_to(image.root)) for path, _ in files(image.root) if path.stat().st_mode & 0o6000]
    expect(not raising, f"files that raise rights: {', '.join(raising)}")
    tests = [str(path) for path in image.root.glob("opt/skillguard/lib/**/tests")]
    expect(not tests, f"tests: {', '.join(tests)}")
    return "no compiler, no pip, no setuid file, no tests of packages"


def rights(running: Running) -> str:
    """Not root, and no capability."""
    user = running.run("id").stdout.split()[0]
    expect(user.startswith("uid=") and not user.startswith("uid=0("), f"id: got {user}, wanted another user than root")
    status = dict(line.split(":\t", 1) for line in running.run("cat", "/proc/self/status").stdout.splitlines())
    held = {name: status[name] for name in ("CapPrm", "CapEff", "CapBnd") if int(status[name], 16)}
    expect(not held, f"capabilities: {held}")
    return f"{user}, no capability"


def read_only(running: Running) -> str:
    """Files can be made in /tmp and nowhere else."""
    for folder in NOT_WRITABLE:
        done = running.run("touch", f"{folder}/written")
        expect("Read-only file system" in done.stderr, f"touch {folder}/written: {done.stderr.strip() or 'written'}")
    expect(running.run("touch", f"{WRITABLE}/written").returncode == 0, f"{WRITABLE} cannot be written")
    return f"read-only; {WRITABLE} is not"


def healthy(running: Running, image: Image) -> bool:
    """What the image's own health check says."""
    kind, *command = image.config["Healthcheck"]["Test"]
    expect(kind == "CMD", f"HEALTHCHECK {kind}: wanted CMD, since images without a shell know no other")
    return running.run(*command).returncode == 0


def ready(running: Running) -> None:
    """Waits until the server says that it is."""
    await_address(running.process, in_banner)
    threading.Thread(target=drain, args=(running.process,), daemon=True).start()


def readme_request(running: Running) -> str:
    """README's example prints what README says."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    expect(example is not None, "README.md has no example in Python")
    assert example is not None
    wanted = [line.removeprefix("# ") for line in example[1].splitlines() if line.startswith("# ")]
    done = running.beside(sys.executable, "-c", example[1])
    expect(done.stdout.splitlines() == wanted, f"got {done.stdout}{done.stderr}, wanted {wanted}")
    return "; ".join(line.replace(" | ", ": ", 1) for line in wanted)


def written(running: Running) -> str:
    """What a server that answered left in /tmp."""
    found = running.run("find", WRITABLE, "-mindepth", "1").stdout.split()
    return ", ".join(found) or "nothing"


def ends(running: Running) -> str:
    """SIGTERM, as engines send it to process 1, ends the server."""
    running.first.send_signal(signal.SIGTERM)
    status = running.process.wait(timeout=60)
    expect(status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), f"SIGTERM: exit status {status}")
    return f"exit status {status}"
