"""The servers that are compared, as their users start them, and the model that each runs."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from benchmarks.likelihoods import vllm_server
from benchmarks.serving import ROOT, ServerDidNotStartError, running, running_server

DEMO = ROOT / "artifacts" / "demo" / "model"
VLLM_FLAGS = ("--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(1 << 28))
"""What vLLM needs on CPUs, given to both that run it."""
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running server: where, and what it calls the model."""

    url: str
    """Ends in /v1."""
    model: str


@dataclass(frozen=True)
class Setup:
    """What a comparison runs: a model's folder and the guards of the guarded side."""

    model: Path
    artifacts: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What every server calls the model."""
        return self.model.name if self.model != DEMO else "skillguard-demo"


@contextmanager
def skillguard(setup: Setup, *arguments: str, guarded: bool) -> Iterator[Server]:
    """`skillguard serve`."""
    guards = ["--artifacts", *map(str, setup.artifacts)] if guarded else ["--unguarded"]
    served = ["--model", str(setup.model), "--served-name", setup.name]
    with running_server(*served, *guards, *arguments) as url:
        yield Server(f"{url}/v1", setup.name)


@contextmanager
def vllm_itself(setup: Setup) -> Iterator[Server]:
    """vLLM's own server."""
    with vllm_server(setup.model, VLLM_FLAGS) as url:
        yield Server(f"{url}/v1", setup.model.name)


@contextmanager
def transformers_itself(setup: Setup) -> Iterator[Server]:
    """`transformers serve` with continuous batching, as our embedded engine has it, once its model is loaded."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(setup.model), "--continuous-batching"]
    flags = ["--dtype", "float32", "--device", "cpu", "--port", str(port), "--host", "127.0.0.1"]
    with started([*command, *flags], f"http://127.0.0.1:{port}/health"):
        yield Server(f"http://127.0.0.1:{port}/v1", str(setup.model))


@contextmanager
def router(servers: Sequence[Server]) -> Iterator[Server]:
    """nginx in front of several, which takes them in turns. Raises FileNotFoundError where it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise FileNotFoundError("nginx is not installed: install Debian's package `nginx-light`")
    port = free_port()
    upstream = "".join(f"server {urlsplit(each.url).netloc}; " for each in servers)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(
            f"pid {folder}/pid; error_log {folder}/error.log; daemon off; worker_processes 1;\n"
            "events { worker_connections 2048; }\n"
            f"http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};\n"
            f"upstream replicas {{ {upstream} keepalive 256; }}\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://replicas; proxy_http_version 1.1;\n"
            'proxy_set_header Connection ""; proxy_set_header Host $http_host; proxy_buffering off; '
            "proxy_read_timeout 600s; } } }\n",
            encoding="utf-8",
        )
        with started(
            [program, "-p", folder, "-e", f"{folder}/error.log", "-c", str(config)], f"http://127.0.0.1:{port}/health"
        ):
            yield Server(f"http://127.0.0.1:{port}/v1", servers[0].model)


@contextmanager
def replicas(setup: Setup, count: int, *arguments: str) -> Iterator[list[Server]]:
    """So many of `skillguard serve` with guards."""
    with ExitStack() as stack:
        yield [stack.enter_context(skillguard(setup, *arguments, guarded=True)) for _ in range(count)]


@contextmanager
def ceiling() -> Iterator[Server]:
    """The server that only sends."""

    def up(line: str) -> str | None:
        return line.split()[1] if line.startswith("  ready  ") else None

    with running([sys.executable, "-m", "benchmarks.load.ceiling"], up) as url:
        yield Server(url, "ceiling")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(command: Sequence[str], health: str) -> Iterator[None]:
    """A process that says nothing when it is up, until it answers. Raises ServerDidNotStartError."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not _answers(health):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise ServerDidNotStartError(log.read()[-2000:])
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except (URLError, OSError):
        return False
