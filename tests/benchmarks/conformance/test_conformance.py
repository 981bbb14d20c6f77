"""Other projects' tests: laid out, run with our plugin, and judged. The copy is made up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.conformance import exemptions, recorder
from benchmarks.conformance.judging import Exempt, judge
from benchmarks.conformance.suites import OPENAI_SDK, VLLM, NoCopyError, version


def lines(*outcomes: tuple[str, str]) -> str:
    return "".join(json.dumps({"test": test, "outcome": found, "said": "why"}) + "\n" for test, found in outcomes)


def test_judging() -> None:
    exempt = [Exempt("No adapters.", ("*lora*",)), Exempt("Never seen.", ("*::test_other[[]*",))]
    outcomes = lines(("a::test_x[/m]", "passed"), ("a::test_x[lora]", "failed"), ("a::test_y[lora]", "passed"))
    found = judge(outcomes + lines(("a::test_y[/m]", "failed"), ("a::test_z", "skipped")), exempt, "/m")
    assert (found["passed"], found["failed"], found["not applicable"], found["skipped"]) == (2, 1, 1, 1)
    assert found["failures"] == [{"test": "a::test_y[MODEL]", "said": "why"}]
    assert found["reasons"] == {"No adapters.": {"count": 1, "tests": ["a::test_x"]}}


def test_a_pattern_takes_no_more_than_it_names() -> None:
    (stored, *_) = exemptions.OPENAI_SDK
    assert stored.covers("tests/api_resources/chat/test_completions.py::TestCompletions::test_method_list[loose]")
    assert not stored.covers("tests/api_resources/test_models.py::TestModels::test_method_list[loose]")
    created = "tests/api_resources/chat/test_completions.py::TestCompletions::test_method_create_overload_1[loose]"
    assert not any(one.covers(created) for one in exemptions.OPENAI_SDK)
    for name in ("test_echo_logprob_completion[-1-MODEL]", "test_no_logprobs[-MODEL]", "test_zero_logprobs[-MODEL]"):
        assert not any(one.covers(f"tests/entrypoints/openai/test_completion.py::{name}") for one in exemptions.VLLM)


def test_the_models_name_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    copy, folder = tmp_path / "copy", tmp_path / "laid"
    file = copy / "tests" / "api_resources" / "test_models.py"
    file.parent.mkdir(parents=True)
    file.write_text('retrieve("gpt-4o", model="model", role="gpt")\n', encoding="utf-8")
    (copy / "pyproject.toml").write_text('[project]\nversion = "3.3.1"\n', encoding="utf-8")
    assert OPENAI_SDK.lay_out(copy, folder, "demo") == ["tests/api_resources/test_models.py"]
    assert (folder / "tests/api_resources/test_models.py").read_text() == (
        'retrieve("demo", model="demo", role="gpt")\n'
    )
    assert version(copy) == "3.3.1"
    with pytest.raises(NoCopyError, match=r"wanted a copy of vLLM with tests/entrypoints/openai/test_basic\.py"):
        VLLM.lay_out(copy, folder, "demo")


def test_outcomes_are_recorded(tmp_path: Path) -> None:
    tests = "import pytest\ndef test_a(): pass\ndef test_b(): assert 0, 'why'\n@pytest.mark.skip\ndef test_c(): pass\n"
    (tmp_path / "test_it.py").write_text(tests, encoding="utf-8")
    file, root = tmp_path / "outcomes.jsonl", Path(recorder.__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", recorder.__name__, "-c", "/dev/null", "--rootdir", "."]
    subprocess.run(
        [*command, "test_it.py"], cwd=tmp_path, env={recorder.FILE: str(file), "PYTHONPATH": str(root)}, check=False
    )
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["outcome"] for line in found] == ["passed", "failed", "skipped"]
    assert "why" in found[1]["said"]
