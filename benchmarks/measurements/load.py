"""Servers under load, and ESU's way of abstaining beside ours."""

from collections.abc import Mapping
from typing import Any

from benchmarks.load.prompts import SHARES
from benchmarks.measurements.results import Results, Row
from benchmarks.measurements.text import between, measured, paragraph, section, share, sizes, table

_SAID = {
    "guards": "Guards on vLLM: with `{guards}` over without, harmless prompts only. Wanted: 0.98 at 64 clients.",
    "http": "The HTTP layer: `skillguard serve --engine vllm --unguarded` over vLLM's own server, both on vLLM's "
    "engine. Each answer is of 64 tokens. Wanted: 1 at each number of clients.",
    "transformers": "`skillguard serve --unguarded` on the embedded engine over `transformers serve "
    "--continuous-batching`, both on transformers' continuous batching.",
    "router": "Four replicas on the embedded engine behind nginx over one of them asked directly. All run on the same "
    "cores, so this shows what a router and more processes cost, and not what more machines bring.",
    "levels": "Both engines with `{guards}` on mixed prompts, the second over the first.",
    "ceiling": "The client alone, on a server that only sends: what no figure above can exceed.",
}
"""What each comparison is of, in the order of the page."""
_HEAD = (
    *(
        "clients",
        "server",
        "requests/s",
        "tokens/s",
        "first token, ms",
        "a token, ms",
        "abstention, ms",
        "over the first",
    ),
)


def _middle(spread: Mapping[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['p50']:,.1f} ({spread['p95']:,.1f})"


def _ratio(side: Mapping[str, Any]) -> str:
    return f"{share(side['ratio'], 2)} {between((side['low'], side['high']), 2)}" if "ratio" in side else ""


def _lines(row: Row) -> list[tuple[str, ...]]:
    return [
        (
            str(row["clients"]),
            name,
            f"{side['requests_per_second']:,.1f}",
            f"{side['tokens_per_second']:,.0f}",
            _middle(side.get("first_token_ms")),
            _middle(side.get("per_token_ms")),
            _middle(side["abstention_ms"]),
            _ratio(side),
        )
        for name, side in row["sides"].items()
    ]


def load_section(results: Results) -> str:
    """Every comparison that was measured, of every model; empty where none was."""
    parts: list[str] = []
    for name, said in _SAID.items():
        for file in (
            f"load.{name}",
            *(f"load.{each}" for each in results.models("load") if each.startswith(f"{name}-")),
        ):
            found = results.read_if_there(file)
            if found is not None:
                rows: list[Row] = found["rows"]
                parts += [
                    f"### {found['model']}: {name}",
                    paragraph(said.format(guards=", ".join(found["guards"]))),
                    measured(found, f"{sizes(rows, 'rounds')} rounds of each side, after one that is not counted"),
                    table(_HEAD, [line for row in rows for line in _lines(row)]),
                ]
    if not parts:
        return ""
    mix = ", ".join(f"{share_:.0%} {kind}" for kind, share_ in SHARES.items())
    return section(
        "Under load",
        paragraph(
            "Streams in a closed loop on two cores, which client, servers and engines share; servers are asked in "
            f"turns, ABBA, in one run. Mixed prompts are {mix}. Times are medians, with what 95 of a hundred stay "
            "within, of the round of median speed. The last column is tokens a second over the first server's, "
            "a median of pairs of rounds with its bootstrap interval of 95 %."
        ),
        *parts,
    )


def authors_section(results: Results) -> str:
    """ESU's way beside both engines; empty where it was not measured."""
    found = results.read_if_there("authors")
    if found is None:
        return ""
    (row,) = found["rows"]
    lines = [
        (
            name,
            str(side["requests"]),
            str(side["abstained"]),
            share(side["requests_per_second"], 2),
            f"{side['tokens_per_second']:,.0f}",
            _middle(side["answer_ms"]),
            _middle(side["abstention_ms"]),
            _ratio(side),
        )
        for name, side in row["sides"].items()
    ]
    return section(
        "ESU's way of abstaining under load",
        paragraph(
            f"{found['model']} on two cores, {row['clients']} clients, mixed prompts, answers of up to "
            f"{found['max_tokens']} tokens, greedy. ESU's way was written anew for this: a hook that builds its cube "
            "at every call, one request at a time, a refusal after the whole answer. Its cube is fitted on the last "
            f"token of {found['fitted']} prompts; ours is {', '.join(f'`{name}`' for name in found['guards'])}. The "
            "last column is requests a second over ESU's way. Wanted: 50. What bounds it here are two cores, on which "
            "a batch is read and drawn only some times faster than one request after another."
        ),
        measured(found, f"{row['rounds']} rounds of each, after one that is not counted"),
        table(
            (
                "server",
                "requests",
                "abstained",
                "requests/s",
                "tokens/s",
                "answer, ms",
                "abstention, ms",
                "over the first",
            ),
            lines,
        ),
    )
