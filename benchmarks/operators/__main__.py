"""What guards' operators cost by themselves, and how many operations they add to a step.

    python -m benchmarks.operators [--full] [--dtype bfloat16]

Every kind of operator at one place, eager and compiled as vLLM compiles it, for so many guards at that place; in turns
with a copy of the vectors that it reads, which is the least that reading them can cost. `times_copy` is the median over
9 rounds of its seconds over the copy's. `--full` measures d_ff 1,408 to 28,672, 1 to 8,192 tokens and 1 to 256 guards.

`steps` counts the operations of a step of the embedded engine that decodes 8 sequences, and of one that computes 1,024
tokens of 4 prompts, on a Llama of 6 layers; `computing` leaves out views. The last line printed is one JSON object,
kept as `results/operators.json`.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.operators.steps import count_steps
from benchmarks.operators.timing import cells
from benchmarks.overhead import FIRES, ROWS, write_guards
from benchmarks.report import publish
from benchmarks.synthetic import build_model
from guards.inside.transformers.loading import DTYPES

LAYERS, WIDTH = 6, 128
MANY = 256


def counted(folder: Path, dtype: str) -> list[dict[str, Any]]:
    """Operations of a step with each kind of guard, and without."""
    identity = build_model(folder / "model", layers=LAYERS, d_model=WIDTH, d_ff=352, dtype=dtype)
    rows = write_guards(folder / "guards", identity, [name for name in ROWS if name != FIRES])
    found = []
    for name, artifacts in rows.items():
        for step, counts in asyncio.run(count_steps(folder / "model", artifacts, dtype)).items():
            found.append({"guards": name, "step": step, **counts})
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all widths, tokens and numbers of guards (hours on CPUs)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    args = parser.parse_args()
    widths, tokens, guards = [1408, 14336], [1, 8, 1024], [1, 16, MANY]
    if args.full:
        widths = [1408, 2816, 5632, 8192, 14336, 28672]
        tokens, guards = [1, 8, 64, 512, 2048, 8192], [1, 4, 16, 64, MANY]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        steps = counted(Path(scratch), args.dtype)
    rows = []
    for row in cells(widths, tokens, guards, DTYPES[args.dtype]):
        rows.append(row)
        print(row, flush=True)
    shape = {"layers": LAYERS, "d_model": WIDTH}
    publish("operators", rows, steps=steps, model=shape, dtype=args.dtype, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
