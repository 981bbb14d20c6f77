"""Runs one attack in a process of its own: python -m benchmarks.attacks.attacker NAME HOST PORT SECONDS."""

import asyncio
import sys

from benchmarks.attacks.attack import Target
from benchmarks.attacks.registry import ATTACKS


def main() -> None:
    """Prints what the attack met."""
    name, host, port, seconds = sys.argv[1:]
    print(asyncio.run(_run(name, Target(host, int(port), float(seconds)))))


async def _run(name: str, target: Target) -> str:
    return await ATTACKS[name].run(target)


if __name__ == "__main__":
    main()
