"""How fast a calibration reads, beside plain forward passes."""

from benchmarks.measurements.results import Results
from benchmarks.measurements.text import between, measured, paragraph, section, share, table

_WAYS = {
    "prefill": "the whole model, with the logits of one token",
    "as deep": "the model up to the last layer that is read",
}


def calibration_section(results: Results) -> str:
    """Empty where nobody measured."""
    found = results.read_if_there("calibration")
    if found is None:
        return ""
    shape, steps = found["shape"], found["steps"]
    return section(
        "How fast a calibration reads",
        paragraph(
            f"`calibrate ksd` on the model {found['model']} ({shape['layers']} layers of width {shape['d_model']:,}, "
            f"{shape['dtype']}) on {found['device']}, beside plain forward passes over the same batches in one run, by "
            "turns. The ratio is that of tokens a second, reading over plain, with a bootstrap interval of 95 %. Above "
            "1 is possible where the whole model is run plainly: a calibration ends a pass at the last layer that it "
            "reads, four fifths of the way, and computes no logits."
        ),
        measured(
            found,
            f"{found['tokens']:,} tokens read, {share(found['padded'])} more padded; {found['threads']} thread(s)",
        ),
        table(
            ("plain passes", "reading over plain", "reading, tokens/s", "plain, tokens/s", "tokens of both"),
            [
                (
                    _WAYS[row["against"]],
                    f"{share(row['ratio'])} {between((row['low'], row['high']))}",
                    f"{row['read_tokens_per_second']:,.0f}",
                    f"{row['plain_tokens_per_second']:,.0f}",
                    f"{row['tokens']:,}",
                )
                for row in found["rows"]
            ],
        ),
        paragraph(
            f"The whole command took {sum(steps.values()):,.0f} s without the plain passes, of which reading was "
            f"{share(found['read_of_command'], 2)}; by step: "
            + ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in steps.items())
            + ". An `answer` is written a token at a time, `fit` and `read` hold the reading."
        ),
    )
