"""All attacks. To add one: a function in a module of this folder, and a row in that module's tuple."""

from benchmarks.attacks import edge, work
from benchmarks.attacks.attack import Attack

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in (*edge.ATTACKS, *work.ATTACKS)}
