"""The door that requests go through while guards are not exchanged."""

import asyncio

import pytest

from server.admission import Admission
from server.engines.errors import EngineBusyError
from server.errors import ChangeRefusedError

pytestmark = pytest.mark.anyio


async def test_it_is_shut_once_everybody_has_left() -> None:
    door = Admission()
    first, second = await door.enter(), await door.enter()
    shut = asyncio.Event()

    async def shutting() -> None:
        async with door.shut(100):
            shut.set()

    task = asyncio.create_task(shutting())
    first()
    first()
    await asyncio.sleep(0)
    assert (door.open, shut.is_set()) == (False, False), "leaving twice counts once"
    second()
    await task
    assert (door.open, shut.is_set()) == (True, True)
    (await door.enter())()


async def test_who_waits_enters_only_an_open_door() -> None:
    """Also where it is shut again before the one who waits wakes up."""
    door = Admission()
    async with door.shut(100):
        waiting = asyncio.create_task(door.enter())
        await asyncio.sleep(0)
    async with door.shut(100):
        await asyncio.sleep(0)
        assert not waiting.done()
    (await waiting)()


async def test_too_many_do_not_wait() -> None:
    door = Admission(most_waiting=1)
    async with door.shut(100):
        waiting = asyncio.create_task(door.enter())
        await asyncio.sleep(0)
        with pytest.raises(EngineBusyError):
            await door.enter()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        another = asyncio.create_task(door.enter())
        await asyncio.sleep(0)
    (await another)()


async def test_it_opens_again_whatever_happens_behind_it() -> None:
    door = Admission()
    leave = await door.enter()
    with pytest.raises(ChangeRefusedError, match=r"1 requests did not end within 0\.01 seconds"):
        async with door.shut(0.01):
            raise AssertionError("somebody is inside")
    assert door.open
    leave()
    with pytest.raises(ZeroDivisionError):
        async with door.shut(0.01):
            raise ZeroDivisionError
    assert door.open
