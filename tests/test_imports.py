"""A room imports rooms above it in this list, and nothing that runs inside a forward pass knows the server."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "guards.errors",
    "guards.core",
    "guards.model",
    "guards.artifact",
    "guards.contract",
    "guards.calibration",
    *("guards.methods.cube", "guards.methods.spans", "guards.methods.neuron_adjust"),
    *("guards.methods.selective_pruning", "guards.methods.probe"),
    "guards.methods",
    "guards.inside",
    *("guards.inside.transformers", "guards.inside.vllm"),
    "guards.esu",
    "server.engines",
    *("server.engines.scripted", "server.engines.embedded", "server.engines.vllm"),
    "server",
    "server.openai",
    "server.routes",
    "server.middleware",
    "server.app",
    "server.evaluation",
    "server.doctor",
    "server.cli",
)
"""As docs/architecture.md has them. A module is in the room with the longest name that its own begins with."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in ("guards", "server") for path in (ROOT / name).rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file names in its imports, those for type checkers included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & MODULES.keys()


def room(module: str) -> str:
    return max((each for each in ROOMS if module == each or module.startswith(f"{each}.")), key=len)


def test_every_module_is_in_a_room_and_every_room_holds_something() -> None:
    rooms = {room(module) for module in MODULES if "." in module and MODULES[module].read_text().strip()}
    assert rooms == set(ROOMS)


def test_the_architecture_page_has_the_rooms_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    paths = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    named = [path.removesuffix("/*.py").removesuffix(".py").replace("/", ".") for path in paths]
    assert [each for each in named if each in ROOMS] == [each for each in ROOMS if each.count(".") < 2]
    folders = {f"{top}.{each.name}" for top in ("guards", "server") for each in (ROOT / top).iterdir() if each.is_dir()}
    assert {each for each in folders if "__" not in each} <= {*named}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_its_own_room_and_those_above(module: str) -> None:
    if "." not in module:
        return
    place = ROOMS.index(room(module))
    below = {each for each in imported(MODULES[module]) - {"guards", "server"} if ROOMS.index(room(each)) > place}
    assert below == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imported(path) - {module} for module, path in MODULES.items()}
    packages = {module for module in MODULES if MODULES[module].name == "__init__.py"}
    TopologicalSorter({m: {each for each in on if each not in packages} for m, on in graph.items()}).prepare()


FOREIGN = ("server", "fastapi", "starlette", "uvicorn", "prometheus_client")


@pytest.mark.parametrize("module", sorted(each for each in MODULES if each.startswith("guards")))
def test_nothing_that_runs_inside_a_pass_names_the_server(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    named = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    named |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert named & set(FOREIGN) == set()


@pytest.mark.vllm
@pytest.mark.parametrize("module", ["guards.inside.vllm.worker", "guards.inside.vllm.capture_worker"])
def test_importing_the_worker_imports_no_server_of_ours(module: str) -> None:
    code = f"import sys, {module}; print(sorted(name for name in sys.modules if name.split('.')[0] == 'server'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_importing_what_runs_inside_transformers_imports_no_server() -> None:
    code = (
        "import sys, guards.inside.transformers.attach, guards.inside.transformers.loading\n"
        f"print(sorted(name for name in sys.modules if name.split('.')[0] in {FOREIGN!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip().splitlines()[-1] == "[]"
