"""Drives one client, in whatever environment has it.

    python -m benchmarks.clients.drivers DRIVER CLIENT RESULTS < SERVED

SERVED is a `Served` as JSON. Every step's outcome is a line of JSON in the file RESULTS, as soon as it is known.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.clients.drivers.steps import LONGEST, STEPS, Served, Steps


def main() -> None:
    driver, client, results = sys.argv[1:]
    served = Served(**json.load(sys.stdin))
    with Path(results).open("a", encoding="utf-8") as file:
        steps: Steps = import_module(f"benchmarks.clients.drivers.{driver}").steps(client, served)
        for name in STEPS:
            if name in steps:
                outcome, said = "passed", ""
                try:
                    said = steps[name]()
                except Exception as error:  # whatever it is, it is what the client's user would see
                    outcome, said = "failed", f"{type(error).__name__}: {error}"
                line = {"step": name, "outcome": outcome, "said": " ".join(said.split())[:LONGEST]}
                print(json.dumps(line), file=file, flush=True)


if __name__ == "__main__":
    main()
