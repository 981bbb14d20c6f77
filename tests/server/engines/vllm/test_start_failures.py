"""A vLLM that does not start says why in one line, with the flag that helps."""

from pathlib import Path

import pytest

from guards.errors import AttachError
from guards.inside.vllm.failures import tell, told
from guards.inside.vllm.settings import FAILURE_FILE
from server.engines.base import Engine
from server.engines.options import VllmOptions
from tests.server.engines.vllm.live import MODEL, guard, live

SHORT = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager")


@pytest.mark.real
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gpu-memory-utilization", "1.0"), "--gpu-memory-utilization"),
        (("--kv-cache-memory-bytes", str(1 << 20)), "--max-model-len"),
    ],
)
def test_too_little_memory(flags: tuple[str, ...], said: str) -> None:
    def make() -> Engine:
        from server.engines.vllm.engine import VllmEngine

        return VllmEngine(options)

    options = VllmOptions(model=str(MODEL), artifacts=(guard("ksd-code"),), flags=(*SHORT, *flags))
    with pytest.raises(AttachError, match=r"vLLM did not start: .*memory") as refused, live(make):
        pass
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_first_reason_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = tmp_path / "failure"
    monkeypatch.setenv(FAILURE_FILE, str(failure))
    with told():
        pass
    assert not failure.exists()
    with pytest.raises(ValueError, match="no room"), told():
        raise ValueError("no room\n  at all")
    tell(RuntimeError("what followed"))
    assert failure.read_text() == "no room at all"
    failure.unlink()
    tell(RuntimeError())
    assert failure.read_text() == "RuntimeError"
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "gone" / "failure"))
    tell(RuntimeError("while it serves"))
    monkeypatch.delenv(FAILURE_FILE)
    tell(RuntimeError("without an engine that looks"))


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("the layout\n is odd", "the layout is odd"),
        (
            "No available memory. Try increasing `gpu_memory_utilization`.",
            "No available memory. Try increasing --gpu-memory-utilization.",
        ),
        (
            "Free memory is less than desired GPU memory utilization (0.92).",
            "Free memory is less than desired --gpu-memory-utilization (0.92).",
        ),
    ],
)
def test_flags_are_the_command_lines(reason: str, line: str) -> None:
    from server.engines.vllm.launch import with_flags

    assert with_flags(reason) == line


@pytest.mark.parametrize(
    "reason",
    ["CUDA out of memory. Tried to allocate 2 GiB", "initialization failed. Failed core proc(s): {'EngineCore': -9}"],
)
def test_a_flag_is_named_where_vllm_names_none(reason: str) -> None:
    from server.engines.vllm.launch import with_flags

    assert "memory" in with_flags(reason)
    assert with_flags(reason).endswith("--max-model-len or --max-num-seqs")
