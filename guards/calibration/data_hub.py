"""Rows of data sets on the Hugging Face hub."""

from collections.abc import Iterator

from guards.calibration.data_rows import DataRow, make_row
from guards.errors import DataError


def read_hub(location: str) -> Iterator[DataRow]:
    """Rows of `hf:NAME[:CONFIG]@SPLIT`. Raises DataError when the library, data set or split is missing."""
    address, at, split = location.removeprefix("hf:").partition("@")
    name, _, config = address.partition(":")
    if not (name and at and split):
        raise DataError(f"{location}: wanted hf:NAME[:CONFIG]@SPLIT, for example hf:openai/gsm8k:main@train")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{location}: hub data sets need the datasets package: pip install 'skillguard[datasets]'"
        ) from error
    try:
        loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises whatever its transports raise
        raise DataError(f"{location}: the data set cannot be loaded ({error})") from error
    for index, values in enumerate(loaded):
        yield make_row(f"{location}[{index}]", dict(values))
