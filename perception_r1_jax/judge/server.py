"""The judge on the mesh behind HTTP: one thread for each client, one for the judge.

Bodies are bounded, errors are JSON, and a client that falls silent is let go. There is no encryption and no key: it is
meant for a network that one trusts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from perception_r1_jax.judge.service import JudgeService, Refused
from perception_r1_jax.judge.wire import error_body

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4_000_000
SILENCE_SECONDS = 60.0
"""A client that says nothing for so long, within a request or between two, is let go."""

FAREWELL_SECONDS = 10.0
"""For clients to take their last answers, at the end."""


class JudgeServer(ThreadingHTTPServer):
    """Serves one judge: `serve_forever` until another thread calls `shutdown`; then `finish` ends well.

    Args:
        service: answers.
        host, port: where to listen; port 0 is any free one, see `server_port`.

    Raises:
        OSError: one cannot listen there.
    """

    daemon_threads = True  # a silent client does not hold up the end
    request_queue_size = 128

    def __init__(self, service: JudgeService, host: str, port: int):
        super().__init__((host, port), _Handler)
        self.service = service
        self._under_way, self._changed = 0, threading.Condition()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While entered, `finish` waits."""
        with self._changed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def finish(self) -> None:
        """Answers what has been asked, refuses what comes on open connections, and closes."""
        self.service.close()
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, FAREWELL_SECONDS)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or a defect here: either ends one connection and no more."""
        logger.debug("the connection of %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_SECONDS

    def do_GET(self) -> None:
        self._reply()

    def do_POST(self) -> None:
        self._reply()

    def _reply(self) -> None:
        try:
            body = self._read_body()
        except Refused as refused:
            self.close_connection = True  # what it sent is still on its way
            return self._send(refused.status, error_body(refused.message, refused.code))
        with self.server.answering():
            self._send(*self.server.service.respond(self.command, self.path, body))

    def _read_body(self) -> bytes:
        """The body, of at most `MAX_REQUEST_BYTES`. Raises `Refused`, or `ConnectionError` where it is cut short."""
        length = self.headers.get("Content-Length", "0" if self.command == "GET" else "")
        if not length.isdecimal():
            raise Refused(411, "a request needs its Content-Length", "length_required")
        if len(length) > 9 or int(length) > MAX_REQUEST_BYTES:
            raise Refused(413, f"a body of {length} bytes; at most {MAX_REQUEST_BYTES} are read", "too_large")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the client has left in the middle of its request")
        return body

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `BaseHTTPRequestHandler` itself refuses, such as a request line that is none."""
        self.close_connection = True
        self._send(code, error_body(message or "this request cannot be read", "invalid_request"))

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
