"""Whose words are whose on a command line with an engine's own flags."""

import pytest

from guards.errors import CalibrationError
from server.cli import build_parser, main
from server.cli_calibrate import vllm_options
from server.cli_engine import split_engine_flags

OURS = ["calibrate", "ksd", "--model", "m", "--skill", "s", "--forget", "f", "--retain", "r", "--output", "o"]


def test_unknown_words_are_vllms_in_order() -> None:
    flags = ["--tensor-parallel-size", "2", "--enforce-eager", "--max-model-len=512"]
    args, found = split_engine_flags(build_parser(), [*OURS, *flags[:2], "--engine", "vllm", *flags[2:]])
    assert found == flags
    args.engine_flags = tuple(found)
    assert vllm_options(args).flags == tuple(flags)


def test_a_flag_of_vllm_is_never_taken_for_the_beginning_of_ours() -> None:
    """`--max` alone would be --max-false-abstention; `--out` would be --output."""
    args, found = split_engine_flags(build_parser(), [*OURS, "--engine", "vllm", "--max", "3", "--out", "x"])
    assert found == ["--max", "3", "--out", "x"]
    assert args.output.name == "o"


def test_without_vllm_an_unknown_word_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*OURS, "--tensor-parallel-size", "2"])
    assert "unrecognized arguments: --tensor-parallel-size 2" in capsys.readouterr().err


def test_the_number_format_is_handed_on() -> None:
    args, found = split_engine_flags(build_parser(), [*OURS, "--engine", "vllm", "--dtype", "bfloat16"])
    args.engine_flags = tuple(found)
    assert vllm_options(args).flags == ("--dtype", "bfloat16")


@pytest.mark.parametrize(("flag", "value"), [("--device", "cpu"), ("--batch-tokens", "64")])
def test_what_vllm_says_in_its_own_words_is_refused(flag: str, value: str) -> None:
    args, _ = split_engine_flags(build_parser(), [*OURS, "--engine", "vllm", flag, value])
    with pytest.raises(CalibrationError, match=f"{flag}: not with --engine vllm"):
        vllm_options(args)
