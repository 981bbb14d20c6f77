"""What a model answered is written once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from guards.calibration import answers
from guards.calibration.activations import Activations, TokenIds
from guards.calibration.answers import write_answers
from guards.errors import DataError
from tests.guards.samples import IDENTITY

PROMPTS = [(1, 2), (3,), (4, 5, 6)]
WANTED = [(2, 1), (3,), (6, 5, 4)]


class Backwards:
    """Answers a prompt with its tokens backwards, and stops before the prompt `broken`."""

    def __init__(self, broken: TokenIds | None = None, **identity: Any) -> None:
        self.asked: list[TokenIds] = []
        self.identity = IDENTITY.model_copy(update=identity)
        self.device = torch.device("cpu")
        self._broken = broken

    def write(
        self, prompts: Sequence[TokenIds], tokens: int, advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenIds]:
        if self._broken in prompts:
            raise KeyboardInterrupt
        self.asked += prompts
        advance(sum(len(prompt) + tokens for prompt in prompts))
        return [prompt[::-1] for prompt in prompts]


def written(model: Backwards, file: Path | None, tokens: int = 8) -> list[TokenIds]:
    done: list[int] = []
    found = write_answers(cast(Activations, model), PROMPTS, tokens, file, done.append)
    assert sum(done) == sum(len(prompt) + tokens for prompt in PROMPTS)
    return found


def test_without_a_file_all_are_written(tmp_path: Path) -> None:
    for _ in range(2):
        model = Backwards()
        assert written(model, None) == WANTED
        assert model.asked == PROMPTS
    assert not list(tmp_path.iterdir())


def test_what_was_written_before_a_stop_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "AT_A_TIME", {"cpu": 1})
    with pytest.raises(KeyboardInterrupt):
        written(Backwards(broken=PROMPTS[2]), tmp_path / "kept")
    with (tmp_path / "kept").open("a", encoding="utf-8") as opened:
        opened.write('{"key": "cut o')
    model = Backwards()
    assert written(model, tmp_path / "kept") == WANTED
    assert model.asked == PROMPTS[2:]
    again = Backwards()
    assert written(again, tmp_path / "kept") == WANTED
    assert not again.asked


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_more_than_64_answers_are_lost(tmp_path: Path, device: str) -> None:
    asked = [(index, 7) for index in range(200)]
    model = Backwards(broken=asked[-1])
    model.device = torch.device(device)
    with pytest.raises(KeyboardInterrupt):
        write_answers(cast(Activations, model), asked, 8, tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes().count(b"\n") >= 200 - 64


def test_a_file_is_one_calibrations_at_a_time(tmp_path: Path) -> None:
    """Another one that starts meanwhile is told so, and what was kept is whole."""
    refused: list[str] = []

    class Interrupted(Backwards):
        def write(self, *arguments: Any) -> list[TokenIds]:
            with (tmp_path / "kept").open("ab") as opened:
                opened.write(b'{"key": "on its w')
            before = (tmp_path / "kept").read_bytes()
            with pytest.raises(DataError) as error:
                written(Backwards(), tmp_path / "kept")
            assert (tmp_path / "kept").read_bytes() == before
            refused.append(str(error.value))
            (tmp_path / "kept").write_bytes(b"")
            return super().write(*arguments)

    assert written(Interrupted(), tmp_path / "kept") == WANTED
    assert [text.partition(": ")[2] for text in refused] == [
        "another calibration keeps its answers there now; wait for it, or name another file"
    ]
    after = Backwards()
    assert written(after, tmp_path / "kept") == WANTED
    assert not after.asked, "the positive control: it may be had again"


@pytest.mark.parametrize("change", [{"weights_sha256": "2" * 64}, {"dtype": "bfloat16"}])
def test_another_models_answers_are_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    written(Backwards(), tmp_path / "kept")
    model = Backwards(**change)
    written(model, tmp_path / "kept")
    assert model.asked == PROMPTS


def test_nor_answers_of_another_length(tmp_path: Path) -> None:
    written(Backwards(), tmp_path / "kept")
    model = Backwards()
    written(model, tmp_path / "kept", tokens=9)
    assert model.asked == PROMPTS


@pytest.mark.parametrize("held", [b"notes\n", b"\xff\xfe\n\x00", b'{"key": 1}\n[\ncut o', b"[1]\n"])
def test_a_file_that_is_none_of_ours_is_refused_and_kept(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "kept").write_bytes(held)
    model = Backwards()
    with pytest.raises(DataError, match=r"line 1: got .*, wanted a kept answer"):
        written(model, tmp_path / "kept")
    assert not model.asked
    assert (tmp_path / "kept").read_bytes() == held


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    model = Backwards()
    with pytest.raises(DataError, match="No such file"):
        written(model, tmp_path / "none" / "kept")
    assert not model.asked
