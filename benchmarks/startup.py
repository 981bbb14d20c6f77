"""Time until a model answers: `skillguard serve` against what it is built on, alternating in one run.

`python -m benchmarks.startup` writes a model of random weights and starts, one after another and each in a process of
its own, as often as `--rounds` says: skillguard where the weights were never hashed before, and where their digest is
known; transformers' own `from_pretrained`; and with `--vllm` the same on vLLM, against vLLM's own server. All read
files that the system has in memory by then, so what is compared is work, not disks. Guards would add their canaries.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import publish
from benchmarks.serving import running, running_server
from benchmarks.synthetic import CONTEXT, build_model

_DTYPE = "bfloat16"
_LOAD = (
    "import sys, torch, transformers;"
    "transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, trust_remote_code=False)"
)
_VLLM = ("--dtype", _DTYPE, "--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", str(1 << 28), "--enforce-eager")


def _serve(model: Path, *flags: str) -> float:
    begun = time.perf_counter()
    with running_server("--model", str(model), "--unguarded", "--dtype", _DTYPE, *flags):
        return time.perf_counter() - begun


def _load(model: Path) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", _LOAD, str(model)], check=True, capture_output=True)
    return time.perf_counter() - begun


def _vllm(model: Path) -> float:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", "18249"]

    def started(line: str) -> str | None:
        return "http://127.0.0.1:18249" if "Application startup complete" in line else None

    begun = time.perf_counter()
    with running([*command, *_VLLM], started):
        return time.perf_counter() - begun


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Where the servers of a block keep digests."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def _arms(model: Path, *, vllm: bool) -> dict[str, Callable[[], float]]:
    """What is timed, in the order of a round: the one that finds no digest comes before the one that does."""
    arms = {
        "skillguard, first start": lambda: _serve(model),
        "skillguard, digest known": lambda: _serve(model),
        "transformers": lambda: _load(model),
    }
    if vllm:
        on_vllm = ("--engine", "vllm", *_VLLM[2:])
        arms["skillguard on vllm, first start"] = lambda: _serve(model, *on_vllm)
        arms["skillguard on vllm, digest known"] = lambda: _serve(model, *on_vllm)
        arms["vllm"] = lambda: _vllm(model)
    return arms


def measure(model: Path, rounds: int, *, vllm: bool) -> list[dict[str, object]]:
    """Seconds of each arm, and how many times its own engine's that is, by the medians."""
    arms = _arms(model, vllm=vllm)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch, _cache(Path(scratch)):
            for name, run in arms.items():
                if name.endswith("first start"):
                    shutil.rmtree(Path(scratch) / "skillguard", ignore_errors=True)
                seconds[name].append(run())
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return [
        {
            "start": name,
            "seconds": [round(each, 2) for each in seconds[name]],
            "times_own": round(medians[name] / medians["vllm" if "vllm" in name else "transformers"], 3),
        }
        for name in arms
    ]


def main() -> None:
    """Measures and publishes `results/startup.json`."""
    parser = argparse.ArgumentParser(description="Time to ready against transformers' own load and vLLM's own start.")
    parser.add_argument("--layers", type=int, default=19, help="of d_model 2048, d_ff 8192 (default: 19, 2.5 GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", action="store_true", help="on vLLM too")
    parser.add_argument(
        "--model", type=Path, help="folder of the model; one that is there is taken (default: temporary)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or Path(scratch) / "model"
        if not (model / "config.json").exists():
            build_model(model, layers=args.layers, d_model=2048, d_ff=8192, dtype=_DTYPE)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        publish("startup", measure(model, args.rounds, vllm=args.vllm), gigabytes=round(size / 1e9, 2), dtype=_DTYPE)


if __name__ == "__main__":
    main()
