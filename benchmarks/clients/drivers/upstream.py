"""A model that runs elsewhere: an OpenAI-compatible server that answers from a list and keeps what it was asked."""

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Upstream:
    """Answers each question as `answers` has it, whole or as a stream of words."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self._answers = answers
        self.asked: list[str] = []
        """The newest message of each request that came through."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = outer._said(str(body["messages"][-1]["content"]))
                stream = bool(body.get("stream"))
                sent = "".join(_events(said)) if stream else json.dumps(_whole(said))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream" if stream else "application/json")
                self.send_header("content-length", str(len(sent.encode())))
                self.end_headers()
                self.wfile.write(sent.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its API's address."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def _said(self, asked: str) -> str:
        self.asked.append(asked)
        return self._answers.get(asked, "I do not know.")


def _choice(name: str, message: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"id": "1", "created": 1, "model": "any-model"} | {
        "choices": [{"index": 0, name: message, "finish_reason": reason}]
    }


def _whole(said: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    message = {"role": "assistant", "content": said}
    return {**_choice("message", message, "stop"), "object": "chat.completion", "usage": usage}


def _events(said: str) -> Iterator[str]:
    words = [({"role": "assistant", "content": f"{word} "}, None) for word in said.split()]
    for delta, reason in [*words, ({}, "stop")]:
        chunk = {**_choice("delta", delta, reason), "object": "chat.completion.chunk"}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
