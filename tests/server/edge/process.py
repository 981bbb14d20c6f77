"""`skillguard serve` as it is, but with a scripted engine: python -m tests.server.edge.process FLAGS.

A prompt that holds "held" is answered up to its first piece, and on from SIGUSR1 on. SIGUSR2 logs how many objects are
not looked through for garbage, and how many are.
"""

import asyncio
import gc
import signal
import sys
from unittest.mock import patch

from server.cli import main
from server.cli import serve as cli_serve
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, answer


def engine(_: object) -> ScriptedEngine:
    """In the place of the engine that the settings ask for."""
    held = asyncio.Event()
    signal.signal(signal.SIGUSR1, lambda *_: held.set())
    signal.signal(signal.SIGUSR2, lambda *_: _log_heap())
    return ScriptedEngine(
        [
            Script((Chunk("Well", tokens=1), held, *answer(", then.")), when=lambda prompt: "held" in prompt),
            Script(answer("x" * 8_000_000), when=lambda prompt: "long" in prompt),
            Script(answer("Hello", " there.")),
        ]
    )


def _log_heap() -> None:
    print(f"settled {gc.get_freeze_count()}, others {len(gc.get_objects())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with patch.object(cli_serve, "create_engine", engine):
        sys.exit(main(["serve", "--port", "0", *sys.argv[1:]]))
