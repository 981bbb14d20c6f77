"""The contract itself."""

import subprocess
import sys


def test_the_contract_loads_no_metrics_library_and_no_engine() -> None:
    code = (
        "import sys, server.engines.base\n"
        "print([m for m in ('prometheus_client', 'torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
