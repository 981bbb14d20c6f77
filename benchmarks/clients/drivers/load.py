"""guidellm, a load generator, with its own defaults: a few chats, streamed, of words that it makes up."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.clients.drivers import steps as s

_REQUESTS = 4


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""

    def stream() -> str:
        folder = Path(tempfile.mkdtemp())
        report = folder / "report.json"
        options = {
            "--backend": f"kind=openai_http,target={served.url.removesuffix('/v1')},model={served.model}",
            "--profile": "kind=synchronous",
            "--constraint": f"kind=max_requests,count={_REQUESTS}",
            "--tokenizer": f"kind=huggingface_auto,model={served.tokenizer}",
            "--data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
            "--output": f"kind=json,path={report}",
        }
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
        command += [word for option in options.items() for word in option]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise s.StepFailedError(f"guidellm: {(done.stdout + done.stderr)[-400:]}")
        benchmark = json.loads(report.read_text(encoding="utf-8"))["benchmarks"][0]
        counts = benchmark["metrics"]["request_totals"]
        if (counts["successful"], counts["errored"]) != (_REQUESTS, 0):
            raise s.StepFailedError(f"wanted {_REQUESTS} answers, got {counts}")
        return f"{counts['successful']} of {_REQUESTS} requests answered"

    return {s.STREAM: stream}
