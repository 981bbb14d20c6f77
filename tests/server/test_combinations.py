"""What is said at the start of guards that change what others read."""

import logging
from dataclasses import replace

import pytest

from guards.core.beside import Beside
from guards.core.verdict import GuardKind
from server.combinations import combined
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import serving

pytestmark = pytest.mark.anyio


def test_guards_that_read_what_the_same_ones_change_are_said_together() -> None:
    among = {
        "sums": Beside(("lunar",)),
        "code": Beside(("lunar",)),
        "late": Beside(("lunar", "rmu")),
        "lunar": Beside(),
        "rmu": Beside(("lunar",), ("lunar",)),
        "early": Beside(),
    }
    assert combined(among) == [
        "guards sums, code, rmu read what intervention lunar changes: canaries are sent with it on and with it off; "
        "rates were measured without",
        "guard late reads what interventions lunar, rmu change: canaries are sent under each of the 4 sets of them; "
        "rates were measured without",
        "intervention rmu acts where lunar did before, in the order of `artifacts`",
    ]
    assert combined({"sums": Beside(), "lunar": Beside()}) == []


async def test_the_log_says_so_before_anything_is_verified(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skillguard.server")
    reached = replace(guard("sums"), beside=Beside(("lunar",)))
    async with serving(ScriptedEngine(guards=(reached, guard("lunar", kind=GuardKind.INTERVENTION)))):
        said = [record.message for record in caplog.records if "what intervention lunar changes" in record.message]
    assert said == combined({"sums": reached.beside})
