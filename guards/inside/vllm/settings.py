"""Names that the engine and its workers share."""

SETTINGS = "skillguard"
"""Key of vLLM's `additional_config`."""


FAILURE_FILE = "SKILLGUARD_FAILURE_FILE"
"""Environment variable: where a worker that cannot start writes why."""
