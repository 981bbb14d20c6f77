"""Named sets of prompts for the transfer and robustness benchmarks: materials of a split, put into formats."""
