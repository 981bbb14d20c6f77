"""vLLM's own parser reads its flags; what guards do not stand is refused before anything starts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.engines.errors import EngineFlagError
from server.engines.options import VllmOptions
from tests.server.engines.vllm.live import MODEL

NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3})
CONNECTOR = json.dumps({"kv_connector": "ExampleConnector", "kv_role": "kv_both"})


def options(*flags: str) -> VllmOptions:
    return VllmOptions(model=str(MODEL), flags=("--dtype", "float32", *flags))


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--no-such-flag", "3"], "vLLM's parser: unrecognized arguments: --no-such-flag 3"),
        (["--api-key", "secret"], "those of its HTTP server do not apply"),
        (["--max-num-seq", "3"], "unrecognized arguments: --max-num-seq 3"),
        (["--max-num-seqs", "many"], "--max-num-seqs: invalid int value: 'many'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--hf-overrides.x"], "vLLM's parser, on .*--hf-overrides.x"),
        (["--worker-cls", "a.B"], "--worker-cls: skillguard sets it"),
        (["--worker-extension-cls", "a.B"], "--worker-extension-cls: skillguard sets it"),
        (["--scheduler_cls=a.B"], "--scheduler-cls: skillguard sets it"),
        (["--additional-config", '{"a": 1}'], "--additional-config: skillguard sets it"),
        (["--additional-config.a", "1"], "--additional-config: skillguard sets it"),
        (["--served-model-name", "name"], "say --served-name"),
        (["--tokenizer", "other"], "--tokenizer: "),
        (["--revision", "main"], "--revision: "),
        (["--hf-overrides", '{"rope_theta": 1.0}'], "--hf-overrides: it would run another model"),
        (["--kv-cache-dtype", "fp8"], "--kv-cache-dtype: it was not tested"),
        (["--nnodes", "2"], "--nnodes: it was not tested"),
        (["--logits-processors", "a.B"], "--logits-processors: it brings code"),
        (["--max-num-queued-reqs", "3"], "say --max-waiting"),
    ],
)
def test_the_parser_refuses(flags: list[str], wanted: str) -> None:
    from server.engines.vllm.config import parse_flags

    with pytest.raises(EngineFlagError, match=wanted):
        parse_flags(options(*flags))


def test_a_config_file_names_no_other_model(tmp_path: Path) -> None:
    from server.engines.vllm.config import parse_flags

    (tmp_path / "vllm.yaml").write_text("model: other\n")
    with pytest.raises(EngineFlagError, match="--model: give it to skillguard"):
        parse_flags(options("--config", str(tmp_path / "vllm.yaml")))


def test_vllms_help_is_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    from server.engines.vllm.config import parse_flags

    with pytest.raises(SystemExit) as ended:
        parse_flags(options("--help=all"))
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--tensor-parallel-size" in shown
    assert "--api-key" not in shown


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--enable-lora"], "--enable-lora"),
        (["--speculative-config", NGRAM], "--speculative-config"),
        (["--data-parallel-size", "2"], "--data-parallel-size"),
        (["--kv-transfer-config", CONNECTOR], "--kv-transfer-config"),
        (["--weight-transfer-config", '{"backend": "nccl"}'], "--weight-transfer-config"),
        (["--enable-prompt-embeds"], "--enable-prompt-embeds"),
        (["--runner", "pooling"], "--runner"),
        (["--load-format", "dummy"], "--load-format dummy"),
        (["--distributed-executor-backend", "external_launcher"], "--distributed-executor-backend external_launcher"),
        (["--trust-remote-code"], "--trust-remote-code"),
        (["-cc.use_inductor_graph_partition=true"], "use_inductor_graph_partition"),
    ],
)
def test_what_guards_do_not_stand_is_refused(flags: list[str], what: str) -> None:
    from server.engines.vllm.config import parse_flags, refuse_unguardable

    config = parse_flags(options(*flags)).create_engine_config()
    with pytest.raises(EngineFlagError, match=f"{what}: not together with guards, since "):
        refuse_unguardable(config)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs these tests, vLLM takes it for a device with CUDA graphs."""
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "support_static_graph_mode", classmethod(lambda cls: True))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("flags", [[], ["-O3"], ["-O1"], ["-O0"], ["--enforce-eager"], ["-cc.mode=0"]])
def test_whole_passes_are_recorded_by_default_and_not_with_guards(flags: list[str]) -> None:
    from server.engines.vllm.config import parse_flags, prefer_piecewise_graphs, refuse_unguardable

    arguments = parse_flags(options(*flags))
    if flags in ([], ["-O3"]):
        with pytest.raises(EngineFlagError, match="full CUDA graphs"):
            refuse_unguardable(arguments.create_engine_config())  # the control
    prefer_piecewise_graphs(arguments)
    refuse_unguardable(arguments.create_engine_config())


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("mode", ["FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"])
def test_whole_passes_that_were_asked_for_are_refused(mode: str) -> None:
    from server.engines.vllm.config import parse_flags, prefer_piecewise_graphs, refuse_unguardable

    arguments = parse_flags(options(f"-cc.cudagraph_mode={mode}"))
    prefer_piecewise_graphs(arguments)
    config = arguments.create_engine_config()
    with pytest.raises(EngineFlagError, match=r"full CUDA graphs .*; say -cc.cudagraph_mode=PIECEWISE"):
        refuse_unguardable(config)


@pytest.mark.parametrize(
    ("flags", "taken"), [([], "xgrammar"), (["--structured-outputs-config.backend=guidance"], "guidance")]
)
def test_one_compiler_takes_every_grammar(flags: list[str], taken: str) -> None:
    from server.engines.vllm.config import parse_flags, take_one_compiler

    arguments = parse_flags(options(*flags))
    take_one_compiler(arguments)
    assert arguments.structured_outputs_config.backend == taken


def test_graphs_that_break_inside_the_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.engines.vllm.config import parse_flags, refuse_unguardable

    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    config = parse_flags(options()).create_engine_config()
    with pytest.raises(EngineFlagError, match=r"breakable CUDA graphs: .*; set VLLM_USE_BREAKABLE_CUDAGRAPH=0"):
        refuse_unguardable(config)


def test_what_is_started_has_none_of_them() -> None:
    from vllm.config import CUDAGraphMode

    from server.engines.vllm.config import parse_flags
    from server.engines.vllm.launch import make_config

    arguments = parse_flags(options())
    assert arguments.compilation_config.cudagraph_mode is None
    make_config(arguments, MODEL, "a.Worker")
    assert arguments.compilation_config.cudagraph_mode is CUDAGraphMode.PIECEWISE


def test_other_flags_reach_vllm() -> None:
    from server.engines.vllm.config import parse_flags, refuse_unguardable

    config = parse_flags(
        options("--max_num_seqs=3", "--enforce-eager", "--max-model-len", "512")
    ).create_engine_config()
    refuse_unguardable(config)
    assert (config.scheduler_config.max_num_seqs, config.model_config.max_model_len) == (3, 512)
    assert config.model_config.enforce_eager


@pytest.mark.parametrize(
    ("method", "settings", "tested"),
    [
        (None, None, True),
        ("auto_gptq", {}, True),
        ("compressed-tensors", {"format": "int-quantized"}, True),
        ("compressed-tensors", {"format": "float-quantized"}, False),
        ("compressed-tensors", {}, False),
        ("compressed-tensors", None, False),
        ("fp8", {}, False),
    ],
)
def test_one_name_does_not_cover_schemes_that_were_not_tested(method: Any, settings: Any, tested: bool) -> None:
    from server.engines.vllm.config import TESTED_QUANTISATION, quantisation_scheme

    model = SimpleNamespace(quantization=method, hf_config=SimpleNamespace(quantization_config=settings))
    assert (quantisation_scheme(model) in (None, *TESTED_QUANTISATION)) is tested
