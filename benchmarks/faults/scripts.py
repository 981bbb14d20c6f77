"""What is done to a server, and what is seen of it: each fault as one function."""

import json
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.faults.callers import HANG_SECONDS, ask, open_client, until
from benchmarks.faults.fault import Scene, Seen
from benchmarks.faults.hurt import SIGNAL
from benchmarks.faults.served import STOP_SECONDS

GUARD = "ksd-mathematics"
_BETWEEN = 12
"""Replies that are awaited before and after a fault, so that it falls among running requests."""
_VANISH, _SLOW = 300, 24
_DAYS = ("+400d", "-400d", "+0d")


def vanish(scene: Scene) -> Seen:
    """Callers who leave at once, after the answer's head, or in its middle."""
    url = urlsplit(scene.callers.url)
    texts = [text for pair in zip(scene.callers.withheld * 99, scene.callers.other * 99, strict=False) for text in pair]

    def leave(index: int) -> None:
        body = {"messages": [{"role": "user", "content": texts[index]}], "max_tokens": 200, "stream": True}
        sent = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((url.hostname or "", url.port or 0)) as connection:
            connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            for _ in range(index % 3):
                connection.recv(256)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, range(_VANISH)))
    left = until(lambda: _metric(scene, "skillguard_requests_waiting") == 0)
    scene.callers.await_replies(_BETWEEN)
    given_up = _metric(scene, 'skillguard_tenant_answers_total{outcome="given_up",tenant="anonymous"}')
    sound = left and _ready(scene) and _others_as_usual(scene)
    return {"left": _VANISH, "answers given up": int(given_up), "queue empties": left, "sound": sound}


def slow_readers(scene: Scene) -> Seen:
    """Readers who take nothing of their streams until everybody else was served."""
    with open_client(scene.callers.url, scene.callers.key) as client:
        requests = [_stream_request(client, scene.callers.other[index], 200) for index in range(_SLOW)]
        waiting = [client.send(request, stream=True) for request in requests]
        scene.callers.await_replies(4 * _BETWEEN)
        ended = Counter("ends" if "[DONE]" in each.read().decode() else "cut" for each in waiting)
        for each in waiting:
            each.close()
    sound = ended["ends"] == _SLOW and _ready(scene) and _others_as_usual(scene)
    return {"readers": _SLOW, "their streams": dict(ended), "sound": sound}


def _others_as_usual(scene: Scene) -> bool:
    """Whether every answer to others ended as the model ended it."""
    return bool(scene.callers.of_other) and scene.callers.of_other.keys() <= {"stop", "length"}


def _stream_request(client: httpx.Client, text: str, max_tokens: int) -> httpx.Request:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "stream": True}
    return client.build_request("POST", "/v1/chat/completions", json=body)


def wounded_for_good(scene: Scene) -> Seen:
    """The engine ends; the server says so, and goes on saying so."""
    scene.served.signal(SIGNAL)
    return _dead(scene)


def wounded_once(scene: Scene) -> Seen:
    """One pass fails: its requests end in errors, and either all is well again or the server says that it is not."""
    scene.served.signal(SIGNAL)
    broken = until(lambda: _errors(scene) > 0)
    scene.callers.await_replies(_BETWEEN)
    state = "serves on" if _ready(scene) else "not ready, says so"
    return {"errors told": broken, "after it": state, "sound": broken}


def kill_core(scene: Scene) -> Seen:
    """vLLM's EngineCore, killed."""
    (core,) = psutil.Process(scene.served.process.pid).children()[-1:]
    named = [each for each in scene.served.family() if "EngineCore" in _title(each)]
    (named[0] if named else core).kill()
    return _dead(scene)


def kill_worker(scene: Scene) -> Seen:
    """A worker of two, killed."""
    workers = [each for each in scene.served.family() if "Worker" in _title(each)]
    workers[-1].kill()
    return {"workers": len(workers), **_dead(scene)}


def _title(process: psutil.Process) -> str:
    return " ".join([process.name(), *process.cmdline()])


def _dead(scene: Scene) -> Seen:
    told = until(lambda: _status(scene, "/health") == 503)
    scene.callers.await_replies(_BETWEEN)
    with open_client(scene.callers.url, scene.callers.key) as client:
        after = ask(client, scene.callers.withheld[0], stream=True)
    return {
        "/health says 503": told,
        "a request after it": after.ended,
        "sound": told and after.ended.startswith("503"),
    }


def disk_full(scene: Scene) -> Seen:
    """The audit log cannot grow: what must be recorded is not answered, and the rest is."""
    failing = until(lambda: _metric(scene, "skillguard_audit_failing") == 1, seconds=4 * HANG_SECONDS)
    before = scene.callers.of_skill.copy()
    scene.callers.await_replies(2 * _BETWEEN)
    after = scene.callers.of_skill - before
    refused = sum(count for ended, count in after.items() if "audit_failure" in ended)
    others = scene.callers.of_other["stop"] + scene.callers.of_other["length"]
    return {
        "audit log fails": failing,
        "withheld answers that became audit_failure": refused,
        "withheld answers beside these": after.total() - refused,
        "sound": failing and refused > 0 and others > 0 and _ready(scene),
    }


def clock_steps(scene: Scene) -> Seen:
    """The wall clock jumps more than a year ahead, back behind its start, and to where it was."""
    for step in _DAYS:
        (scene.folder / "clock").write_text(f"{step}\n")
        scene.callers.await_replies(_BETWEEN)
    refused = sum(count for ended, count in scene.callers.of_skill.items() if ended != "content_filter")
    sound = refused == 0 and _ready(scene) and _others_as_usual(scene)
    return {"steps": list(_DAYS), "requests not as usual": refused, "sound": sound}


def corrupt_reload(scene: Scene) -> Seen:
    """Artifacts with a byte off, cut short, and gone, each offered to the running server."""
    source = next(path for path in (scene.folder / "guards").iterdir())
    ended: list[str] = []
    with open_client(scene.callers.url, (scene.folder / "admin").read_text()) as client:
        for name, damage in _DAMAGES.items():
            broken = scene.folder / name
            shutil.copytree(source, broken)
            damage(broken)
            reply = client.post(f"/admin/guards/{GUARD}/reload", json={"path": str(broken)})
            ended.append(f"{reply.status_code} {reply.json()['error']['code']}")
            scene.callers.await_replies(_BETWEEN)
        whole = client.post(f"/admin/guards/{GUARD}/reload", json={"path": str(source)}).status_code
    sound = all(not each.startswith("2") for each in ended) and whole == 200 and _ready(scene)
    return {"answered": ended, "a whole artifact after them": whole, "sound": sound}


def _flip(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size // 2)


_DAMAGES: Mapping[str, Callable[[Path], object]] = {"a bit off": _flip, "cut short": _cut, "gone": shutil.rmtree}


def stop_under_load(scene: Scene) -> Seen:
    """SIGTERM while answers run."""
    began = time.monotonic()
    scene.served.signal(signal.SIGTERM)
    status = scene.served.ended(STOP_SECONDS)
    return {"exit status": status, "seconds": round(time.monotonic() - began, 1), "sound": status == 0}


def _metric(scene: Scene, name: str) -> float:
    text = httpx.get(f"{scene.callers.url}/metrics", headers=_key(scene), timeout=HANG_SECONDS).text
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def _key(scene: Scene) -> dict[str, str]:
    return {} if scene.callers.key is None else {"authorization": f"Bearer {scene.callers.key}"}


def _status(scene: Scene, path: str) -> int:
    try:
        return httpx.get(f"{scene.callers.url}{path}", headers=_key(scene), timeout=HANG_SECONDS).status_code
    except httpx.HTTPError:
        return 0


def _ready(scene: Scene) -> bool:
    return _status(scene, "/ready") == 200


def _errors(scene: Scene) -> int:
    both = scene.callers.of_skill + scene.callers.of_other
    return sum(count for ended, count in both.items() if ended.startswith(("5", "error")))
