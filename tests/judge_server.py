"""A real HTTP server for tests that answers as a script says, faults included."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from perception_r1_jax.judge.template import answer_text
from perception_r1_jax.judge.wire import chat_answer, model_list


class Call:
    """A request that has arrived, and the ways to answer it.

    Attributes:
        user: text of the user turn.
        body: the whole request.
        attempt: how often this user turn has arrived, from 1.
    """

    def __init__(self, handler: BaseHTTPRequestHandler, body: dict, attempt: int):
        self.body, self.user, self.attempt, self._handler = body, body["messages"][-1]["content"], attempt, handler

    def say(self, text: str | None) -> None:
        self.send(200, json.dumps(chat_answer(text, "scripted", stopped=True)).encode())

    def judge(self, *, keep: int | None = None) -> None:
        """1 for each fact that the response repeats, 0 for the others; of `keep` facts, or of all."""
        facts = re.findall(r"<info\d+>(.*?)</info\d+>", self.user)
        response = self.user.rpartition("</info")[2]
        self.say(answer_text([int(fact in response) for fact in facts[:keep]]))

    def send(self, status: int, content: bytes = b"", *, length: bool = True, **headers: str) -> None:
        """An answer; without its length it ends where the connection does."""
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.send_header(*(("Content-Length", str(len(content))) if length else ("Connection", "close")))
        self._handler.end_headers()
        self._handler.wfile.write(content)

    def hang(self, seconds: float, content: bytes = b"") -> None:
        """Says nothing for a while, or a byte of the content now and then."""
        if content:
            self._handler.send_response(200)
            self._handler.send_header("Content-Length", str(len(content)))
            self._handler.end_headers()
        for byte in content or b" ":
            time.sleep(seconds / max(len(content), 1))
            if content:
                self._handler.wfile.write(bytes([byte]))

    def close_early(self, *, reset: bool = False) -> None:
        """Closes the connection in the middle of an answer, or resets it before."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            self._handler.send_response(200)
            self._handler.send_header("Content-Length", "1000")
            self._handler.end_headers()
            self._handler.wfile.write(b'{"choices": [')
        self._handler.close_connection = True


class ScriptedServer(ThreadingHTTPServer):
    """Answers each chat completion by `script(call)`; to be used as a context.

    Attributes:
        calls: every request that came, in the order of arrival.
        most: the most that were under way at once.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Callable[[Call], None], models: tuple[str, ...] | None = ("scripted",)):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.models = script, models
        self.calls: list[Call] = []
        self.authorizations: list[str | None] = []
        self.most = self._under_way = 0
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """The client has gone away: part of the faults that are tested."""

    def answer(self, handler: BaseHTTPRequestHandler, body: dict) -> None:
        with self._lock:
            attempt = 1 + sum(call.body == body for call in self.calls)
            self.calls.append(Call(handler, body, attempt))
            call = self.calls[-1]
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        try:
            self.script(call)
        finally:
            with self._lock:
                self._under_way -= 1

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions", self.path
        self.server.authorizations.append(self.headers.get("Authorization"))
        self.server.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_GET(self) -> None:
        assert self.path == "/v1/models", self.path
        names = self.server.models
        content = b"no list here" if names is None else json.dumps(model_list(names)).encode()
        self.send_response(404 if names is None else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Quiet."""


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
