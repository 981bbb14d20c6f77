"""What the pages name is there: commands and flags, files, tests, routes, variables, error codes, and ends of links."""

import ast
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from starlette.routing import Route

from server.app import create_app
from server.cli.engine import own_flags, split_flags
from server.cli.main import WITH_ENGINE, build_parser
from server.config import ServerConfig
from server.engines.scripted.engine import ScriptedEngine
from server.engines.vllm.config import REFUSED
from server.errors import ERROR_REPLIES
from server.refused_names import OTHER_VARIABLES
from server.settings import SECTIONS, Choice, environment_name

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "artifacts" / "README.md", *(ROOT / "docs").glob("*.md")]
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.S)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LEAST = 25
"""Promises in the list: an expression that matches none would prove nothing."""

OTHERS_FLAGS = frozenset(
    {
        *("--cov", "--disable-pip"),  # pytest's, pip-audit's
        *("--build", "--build-arg", "--ipc", "--set", "--shm-size", "--stop-timeout", "--tmpfs"),  # Docker's, Helm's
        *(f"--{name.replace('_', '-')}" for name in REFUSED),
        *("--compilation-config", "--data-parallel-size", "--distributed-executor-backend", "--ec-transfer-config"),
        *("--enable-dbo", "--enable-lora", "--enable-prompt-embeds", "--enable-sleep-mode", "--enforce-eager"),
        *("--gpu-memory-utilization", "--hf-token", "--kv-cache-memory-bytes", "--kv-sharing-fast-prefill"),
        *("--kv-transfer-config", "--language-model-only", "--max-model-len", "--max-num-batched-tokens"),
        *("--max-num-seqs", "--no-enable-prefix-caching", "--override-generation-config", "--quantization"),
        *("--runner", "--speculative-config", "--structured-outputs-config", "--trust-remote-code"),
        "--weight-transfer-config",
    }
)
"""vLLM's where nothing else is said."""
NOT_COMMITTED = frozenset({"benchmarks/unfinished"})


@cache
def source(folder: str) -> str:
    """All Python files of a folder, or a module's, as one text."""
    path = ROOT / folder
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return "\n".join(each.read_text(encoding="utf-8") for each in files)


@cache
def options_source(folder: str) -> str:
    """The same, with the module whose `parse` it takes its options by, where it has none of its own."""
    text = source(folder)
    shared = re.search(r"^from (benchmarks[\w.]+) import .*\bparse\b", text, re.MULTILINE)
    return text if shared is None else text + source(shared[1].replace(".", "/"))


@cache
def our_flags() -> dict[str, set[str]]:
    parser = build_parser()
    (commands,) = (each.choices for each in parser._actions if isinstance(each.choices, dict))
    return {command: own_flags(parser, command) for command in commands}


def prose(text: str) -> str:
    return FENCED.sub("", text)


def shown_commands(text: str) -> Iterator[str]:
    """Each command of the blocks of shell, with the lines that it goes on in."""
    for language, block in FENCED.findall(text):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                yield from (each.strip() for each in line.split("&&"))


def wrong_commands(page: Path, text: str) -> Iterator[str]:
    for command in shown_commands(text):
        words = shlex.split(command, comments=True)
        if words[:1] == ["skillguard"]:
            ours, theirs = split_flags(words[1:], our_flags().get(words[1], set()))
            flags = [each for each in theirs if each.startswith("-")]
            if flags and (words[1] not in WITH_ENGINE or "vllm" not in ours):
                yield f"{command}: {flags[0]}"
            if "..." in words:
                continue
            parser = build_parser()
            parser.exit_on_error = False
            try:
                parser.parse_args([each for each in ours if each != "&"])
            except (ArgumentError, SystemExit) as error:
                yield f"{command}: {error}"


def wrong_modules(page: Path, text: str) -> Iterator[str]:
    """`python -m` of ours, and flags that stand behind it: the module's own, or those of a server that it starts."""
    for module, rest in re.findall(r"python -m\s+((?:artifacts|benchmarks|server|tests)[\w.]*)([^`\n]*)", text):
        name = module.replace(".", "/")
        if not (ROOT / name / "__main__.py").exists() and not (ROOT / name).with_suffix(".py").exists():
            yield module
        elif module.startswith("benchmarks"):
            given = set(re.findall(r"--[a-z][\w-]*", rest.partition("#")[0])) - our_flags()["serve"]
            yield from (f"{module} {flag}" for flag in given if f'"{flag}"' not in options_source(name))


def wrong_flags(page: Path, text: str) -> Iterator[str]:
    ours = set[str]().union(*our_flags().values()) | OTHERS_FLAGS
    for flag in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+(?!\w)", prose(text)))):
        if flag not in ours and f'"{flag}"' not in source("benchmarks"):
            yield flag


@cache
def modules() -> set[str]:
    """The names of all Python files, which a page may leave without their folder."""
    tops = ("artifacts", "benchmarks", "docs", "guards", "server", "tests")
    return {path.name for top in tops for path in (ROOT / top).rglob("*.py")}


def wrong_paths(page: Path, text: str) -> Iterator[str]:
    for path in sorted(set(re.findall(r"`([\w.*/-]+)`", prose(text))) - NOT_COMMITTED):
        top, _, below = path.partition("/")
        if below and top in (".ci", "artifacts", "benchmarks", "docker", "docs", "guards", "server", "tests"):
            if not list(ROOT.glob(path.rstrip("/"))):
                yield path
        elif path.endswith(".py") and path.rpartition("/")[2] not in modules():
            yield path


def wrong_routes(page: Path, text: str) -> Iterator[str]:
    served = {route.path for route in create_app(ScriptedEngine(), ServerConfig()).routes if isinstance(route, Route)}
    heads = {each.split("/")[1] for each in served}
    for path in sorted(set(re.findall(r"`(?:[A-Z]+ )?(/[\w./{}-]+)", prose(text)))):
        if path.split("/")[1] in heads and path.replace("NAME", "{name}").rstrip("/") not in served | {"/admin", "/ui"}:
            yield path


def wrong_variables(page: Path, text: str) -> Iterator[str]:
    known = {environment_name((name,)) for name in Choice.model_fields} | OTHER_VARIABLES
    known |= {environment_name((section, name)) for section, model in SECTIONS.items() for name in model.model_fields}
    yield from sorted(set(re.findall(r"SKILLGUARD_[A-Z_]*[A-Z]", text)) - known)


def wrong_codes(page: Path, text: str) -> Iterator[str]:
    """What stands behind a status is an error's code."""
    codes = {(str(reply.status), reply.code) for reply in ERROR_REPLIES.values()}
    yield from (" ".join(each) for each in re.findall(r"\b([45]\d\d) `(\w+)`", text) if each not in codes)


def wrong_links(page: Path, text: str) -> Iterator[str]:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(text)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            yield link


def anchors(text: str) -> set[str]:
    """The headings, as they are named in links."""
    return {
        re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in re.findall(r"^#+ (.*)$", prose(text), re.M)
    }


def wrong_tests(page: Path, text: str) -> Iterator[str]:
    for path, name in NAMED_TEST.findall(text):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8")) if (ROOT / path).exists() else ast.Module([], [])
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        if name not in {each.name for each in functions}:
            yield f"{path}::{name}"


Check = Callable[[Path, str], Iterator[str]]
CHECKS: dict[Check, str] = {
    wrong_commands: "```bash\nskillguard guards list --api-key x\n```",
    wrong_modules: "`python -m benchmarks.nothing`",
    wrong_flags: "`--unguarde`",
    wrong_paths: "`server/nothing.py`",
    wrong_routes: "`POST /v1/nothing`",
    wrong_variables: "SKILLGUARD_PORT",
    wrong_codes: "503 `rate_limit_exceeded`",
    wrong_links: "[there](operating.md#nowhere)",
    wrong_tests: "`tests/test_documentation.py::test_nothing`",
}
"""Each with what it has to find."""


@pytest.mark.parametrize("check", CHECKS)
def test_what_a_page_names_is_there(check: Check) -> None:
    found = {page.name: list(check(page, page.read_text(encoding="utf-8"))) for page in PAGES}
    assert {page: names for page, names in found.items() if names} == {}
    assert list(check(ROOT / "docs" / "architecture.md", CHECKS[check])) != [], "the control"


def test_every_promise_has_its_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = page.partition("## The fail-closed list")[2].partition("\n## ")[0].splitlines()
    promises = [row for row in rows if row.startswith("| ") and not row.startswith("| what fails")]
    assert len(promises) >= LEAST
    assert [row for row in promises if not NAMED_TEST.search(row)] == []


def test_every_flag_of_vllms_that_is_refused_is_in_the_table() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    table = page.partition("\nRefused, each with its reason:\n")[2].partition("\n\nQuantised")[0]
    named = set(re.findall(r"`(--[a-z-]+)`", table))
    assert {f"--{name.replace('_', '-')}" for name in REFUSED if name != "model"} - named == set()
