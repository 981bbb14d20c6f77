"""Runs other projects' own tests of the API against a running server. Nothing is fetched.

    python -m benchmarks.conformance [--openai-sdk DIR] [--vllm DIR] [--base-url URL] [FLAGS OF serve]

DIR is a copy of openai/openai-python or of vllm-project/vllm, as checked out. What is run of it is listed in
`suites.py`, with the model's name replaced by that of the served one. vLLM's tests get the model's folder as its name,
since they load its tokenizer by that. A test that fails and is listed in `exemptions.py` does not apply, for the reason
given there. Flags that are not listed here go to `skillguard serve`; the demo is served by default, and its guard only
watches, since several prompts of vLLM's tests are sums.

Beside this environment the tests need pytest-asyncio, jsonschema, regex and aiohttp. The first of these changes
how pytest runs, so `--python` names an interpreter of an environment that has them on top of this one. The last line
printed is one JSON object, as in benchmarks/results/conformance.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx

from benchmarks import report
from benchmarks.conformance import exemptions
from benchmarks.conformance.judging import Exempt, judge
from benchmarks.conformance.suites import OPENAI_SDK, VLLM, Suite, version
from benchmarks.serving import ROOT, running_server

NAME = "conformance"
DEMO = ROOT / "artifacts" / "demo" / "model"
SUITES = ((OPENAI_SDK, "openai_sdk", exemptions.OPENAI_SDK), (VLLM, "vllm", exemptions.VLLM))


def measure(
    suite: Suite, exempt: Sequence[Exempt], copy: Path, args: argparse.Namespace, flags: Sequence[str]
) -> dict[str, Any]:
    """One suite's outcomes, of a server of its own unless one runs already."""
    serve = [*flags] if args.model == DEMO else ["--model", str(args.model), *flags]
    if suite.by_folder:
        serve += ["--served-name", str(args.model)]
    with nullcontext(args.base_url) if args.base_url else running_server(*serve) as url:
        root = url.removesuffix("/").removesuffix("/v1")
        model = httpx.get(f"{root}/v1/models").raise_for_status().json()["data"][0]["id"]
        lines = suite.run(args.python, copy.resolve(), args.work / suite.name, model, root)
    found = {"suite": suite.name, "version": version(copy), "serve": flags}
    return {**found, **judge(lines, exempt, model)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--openai-sdk", type=Path, metavar="DIR", help="a copy of openai/openai-python")
    parser.add_argument("--vllm", type=Path, metavar="DIR", help="a copy of vllm-project/vllm")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="an interpreter that has what they need"
    )
    parser.add_argument(
        "--base-url", help="a server that runs already; for vLLM's tests its model has its folder as name"
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="the model's folder (default: the demo's)")
    parser.add_argument("--work", type=Path, default=report.UNFINISHED / NAME, help="where the tests are laid out")
    args, flags = parser.parse_known_args(arguments)
    args.model, args.work = args.model.resolve(), args.work.resolve()
    wanted = [(suite, exempt, copy) for suite, option, exempt in SUITES if (copy := getattr(args, option)) is not None]
    if not wanted:
        parser.error("got no copy, wanted --openai-sdk, --vllm or both")
    rows = [measure(suite, exempt, copy, args, flags) for suite, exempt, copy in wanted]
    kept = report.RESULTS / f"{NAME}.json"
    old = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else []
    rows += [row for row in old if row["suite"] not in {row["suite"] for row in rows}]
    report.publish(NAME, sorted(rows, key=lambda row: str(row["suite"])))


if __name__ == "__main__":
    main()
