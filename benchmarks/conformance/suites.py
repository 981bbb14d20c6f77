"""The suites: which files of a copy are run, and what is put in the place of what they cannot have here."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.conformance import recorder

_HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 3000


class NoCopyError(ValueError):
    """A folder that holds no copy of what it should."""


@dataclass(frozen=True)
class Suite:
    """Tests of another project.

    name: as shown. files: paths in the copy. support: folders and files that these need. names: what in a file stands
    for a model. placed: files of ours, and where they go. options: of pytest.
    """

    name: str
    files: tuple[str, ...]
    support: tuple[str, ...]
    names: str
    placed: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    by_folder: bool = False
    """Whether the model's name must be its folder, which the tests load a tokenizer from."""
    sources: str | None = None
    """A folder of the copy that is imported before what is installed."""

    def lay_out(self, copy: Path, folder: Path, model: str) -> list[str]:
        """Puts the tests into a folder, for a model of this name; the files that the copy has.

        Raises NoCopyError.
        """
        found = [name for name in self.files if (copy / name).is_file()]
        if not found:
            raise NoCopyError(f"{copy}: wanted a copy of {self.name} with {self.files[0]} or others of its tests")
        shutil.rmtree(folder, ignore_errors=True)
        for name in self.support:
            if (copy / name).is_dir():
                shutil.copytree(copy / name, folder / name, dirs_exist_ok=True)
            elif (copy / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(copy / name, folder / name)
        for name in found:
            text = re.sub(self.names, f'"{model}"', (copy / name).read_text(encoding="utf-8"))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for ours, theirs in self.placed.items():
            (folder / theirs).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_HERE / ours, folder / theirs)
        return found

    def run(self, python: Path, copy: Path, folder: Path, model: str, url: str) -> str:
        """Runs them against a server, with an interpreter that has what they need; the lines of `recorder`.

        Raises NoCopyError, and RuntimeError where pytest stopped.
        """
        files = self.lay_out(copy, folder, model)
        outcomes = folder / "outcomes.jsonl"
        paths = [str(copy / self.sources)] if self.sources else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, str(folder), str(_HERE.parents[1])]),
            recorder.FILE: str(outcomes),
            "TEST_API_BASE_URL": f"{url}/v1",
            "SKILLGUARD_URL": url,
            "SKILLGUARD_MODEL": model,
        }
        command = [str(python), "-m", "pytest", "-q", "--tb=native", "-p", recorder.__name__, *self.options, *files]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        if done.returncode > 1:  # 0 and 1: all tests ran
            raise RuntimeError(f"not all tests of {self.name} ran: {(done.stdout + done.stderr)[-1500:]}")
        return outcomes.read_text(encoding="utf-8")


def version(copy: Path) -> str | None:
    """What the copy says it is, where it says so."""
    project = copy / "pyproject.toml"
    if not project.is_file():
        return None
    found = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("version")
    return str(found) if found else None


_API = "tests/api_resources"
_RESOURCES = ("test_completions", "chat/test_completions", "test_models", "test_responses")
OPENAI_SDK = Suite(
    "openai-python",
    files=tuple(f"{_API}/{name}.py" for name in _RESOURCES),
    support=("tests", "pyproject.toml", "README.md"),
    names=r'"gpt-[^"]*"|(?<=model=)"[^"]*"',
    options=("-o", "addopts=", "-p", "no:cacheprovider"),
    sources="src",
)
_ENTRY = "tests/entrypoints"
_ROUTES = (
    *("basic", "chat", "chat_echo", "chat_logit_bias_validation", "chat_with_tool_reasoning", "chunked_prompt"),
    *("completion", "completion_with_function_calling", "models", "prompt_validation", "return_tokens_as_ids"),
    "tokenization",
)
_PACKAGES = ("tests/__init__.py", f"{_ENTRY}/__init__.py", f"{_ENTRY}/conftest.py", f"{_ENTRY}/openai/__init__.py")
VLLM = Suite(
    "vLLM",
    files=tuple(f"{_ENTRY}/openai/test_{name}.py" for name in _ROUTES),
    support=("pyproject.toml", *_PACKAGES),
    names=r'"(?:HuggingFaceH4|Qwen)/[^"]*"|"gpt2"',
    placed={"vllm_server.py": "tests/utils.py"},
    by_folder=True,
    options=(
        *("-p", "benchmarks.conformance.vllm_plugin", "-p", "no:cacheprovider"),
        *("-o", "asyncio_default_fixture_loop_scope=function", "-o", "addopts="),
    ),
)
