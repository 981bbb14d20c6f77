"""The CPU image: what it was seen to do, and its size."""

from benchmarks.measurements.results import Results
from benchmarks.measurements.text import bullets, measured, paragraph, section, table

_MB = 1_000_000


def image_section(results: Results) -> str:
    """Checks and sizes; empty where no image was run."""
    found = results.read_if_there("image")
    if found is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in found["image"].items())
    largest = ", ".join(f"{each['package']} {each['bytes'] // _MB:,}" for each in found["largest"])
    return section(
        "The CPU image",
        paragraph(
            "The image of `docker/cpu.Dockerfile`, built and run: as its own user, on a read-only root, without "
            "capabilities and without a network. The command says on what; `docs/operating.md` says how to build it."
        ),
        measured(found, f"one image, of {versions}"),
        table(("check", "seen"), [(row["check"], row["seen"]) for row in found["rows"]]),
        bullets(
            [
                f"Unpacked it has {found['bytes'] // _MB:,} MB, of which are {largest}. A registry sends "
                f"{found['compressed_bytes'] // _MB:,} MB.",
                f"The server that answered README's request had at most {found['peak_memory_bytes'] // _MB:,} MB "
                "resident.",
            ]
        ),
    )
