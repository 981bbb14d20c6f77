"""What a worker refuses before it loads a model. Starts no engine."""

import signal
from pathlib import Path
from typing import Any

import pytest

from guards.errors import AttachError, SkillguardError
from guards.inside.vllm.settings import FAILURE_FILE


@pytest.mark.parametrize("index", range(8))
def test_each_way_to_change_weights_is_vllms_and_refused(index: int) -> None:
    from guards.inside.vllm import worker

    name = worker.WEIGHT_CHANGES[index]
    (vllms,) = worker.SiteWorker.__bases__
    assert callable(getattr(vllms, name)), "a name that vLLM does not have refuses nothing"
    guarded: Any = worker.GuardedWorker.__new__(worker.GuardedWorker)
    with pytest.raises(SkillguardError, match="weights cannot change"):
        getattr(guarded, name)("whatever", it="takes")


@pytest.mark.parametrize("index", range(8))
def test_a_release_that_names_one_otherwise_is_refused_at_the_start(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guards.inside.vllm import worker

    renamed = worker.WEIGHT_CHANGES[index]
    others = {name: print for name in worker.WEIGHT_CHANGES if name != renamed}
    monkeypatch.setattr(worker, "PlatformWorker", type("NewWorker", (), others))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "failure"))
    guarded: Any = worker.GuardedWorker.__new__(worker.GuardedWorker)
    with pytest.raises(AttachError, match=f"NewWorker has no {renamed}: "):
        guarded.load_model()
    assert renamed in (tmp_path / "failure").read_text(), "where the engine looks for the reason"
