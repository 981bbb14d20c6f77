"""Whose words are whose on a command line with an engine's own flags."""

import pytest

from server.cli.calibrate import vllm_options
from server.cli.main import main, parse
from server.engines.errors import EngineFlagError

OURS = ["calibrate", "ksd", "--model", "m", "--skill", "s", "--forget", "f", "--retain", "r", "--output", "o"]


def test_unknown_words_are_vllms_in_order() -> None:
    flags = ["--tensor-parallel-size", "2", "--enforce-eager", "--max-model-len=512"]
    args = parse([*OURS, *flags[:2], "--engine", "vllm", *flags[2:]])
    assert args.engine_flags == tuple(flags)
    assert vllm_options(args).flags == tuple(flags)


def test_a_flag_of_vllm_is_never_taken_for_the_beginning_of_ours() -> None:
    """`--max` alone would be --max-false-abstention; `--out` would be --output."""
    args = parse([*OURS, "--engine", "vllm", "--max", "3", "--out", "x"])
    assert args.engine_flags == ("--max", "3", "--out", "x")
    assert args.output.name == "o"


def test_without_vllm_an_unknown_word_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OURS, "--tensor-parallel-size", "2"]) == 2
    assert "--tensor-parallel-size 2: engine transformers has no such flag" in capsys.readouterr().err


def test_the_number_format_is_handed_on() -> None:
    assert vllm_options(parse([*OURS, "--engine", "vllm", "--dtype", "bfloat16"])).flags == ("--dtype", "bfloat16")


@pytest.mark.parametrize(("flag", "value"), [("--device", "cpu"), ("--batch-tokens", "64")])
def test_what_vllm_says_in_its_own_words_is_refused(flag: str, value: str) -> None:
    with pytest.raises(EngineFlagError, match=f"{flag}: not with --engine vllm"):
        vllm_options(parse([*OURS, "--engine", "vllm", flag, value]))
