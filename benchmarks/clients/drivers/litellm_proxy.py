"""LiteLLM's proxy in front of the server, asked through the official client."""

import atexit
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import replace
from pathlib import Path

import openai

from benchmarks.clients.drivers import openai_sdk
from benchmarks.clients.drivers import steps as s

_START_SECONDS = 180


def started(configuration: Path, key: str, **environment: str) -> str:
    """The proxy's address, once it answers. It ends with this process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = Path(tempfile.mkdtemp()) / "log"
    litellm = Path(sys.executable).with_name("litellm")
    command = [str(litellm), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key, **environment}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    atexit.register(process.terminate)
    url = f"http://127.0.0.1:{port}"
    for _ in range(_START_SECONDS):
        try:
            with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):
                return f"{url}/v1"
        except OSError:
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
            break
    raise RuntimeError(f"the proxy did not start: {log.read_text(encoding='utf-8')[-500:]}")


def new_key() -> str:
    """A key of the proxy's own."""
    return f"sk-{secrets.token_hex(32)}"


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    provider = {"model": f"hosted_vllm/{served.model}", "api_base": served.url, "api_key": "unused"}
    models = {"model_list": [{"model_name": served.model, "litellm_params": provider}]}
    configuration = Path(tempfile.mkdtemp()) / "configuration.yaml"
    configuration.write_text(json.dumps(models), encoding="utf-8")  # JSON is YAML
    key = new_key()
    proxied = replace(served, url=started(configuration, key))
    sdk = openai.OpenAI(base_url=proxied.url, api_key=key, max_retries=0)
    return openai_sdk.create(sdk, proxied)
