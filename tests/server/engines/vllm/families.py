"""What vLLM must be told besides, by the family of a model."""

from collections.abc import Mapping, Sequence

MORE_FLAGS: Mapping[str, Sequence[str]] = {
    # Without compilation vLLM 0.32 takes a kernel for CPUs that turns LFM2's query heads by wrong positions.
    "lfm2": ("--compilation-config", '{"custom_ops": ["none"]}'),
}
