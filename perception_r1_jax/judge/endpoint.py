"""An HTTP endpoint asked with patience and within bounds: of time, of size, of attempts. Every failure is a word.

What may pass is tried again (no connection, a connection that breaks, silence, 429, 5xx), after a wait that doubles
from attempt to attempt, or as long as the server's Retry-After says. An answer that has come whole is not asked for
again.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
import urllib.parse
from typing import NamedTuple

import httpx2

from perception_r1_jax.errors import UserError

KEY_VARIABLE = "JUDGE_API_KEY"
"""The environment variable with the endpoint's key, where it wants one: a config would be written to `run.json`."""

TIMEOUT, UNREACHABLE, DISCONNECTED, TOO_LARGE = "timeout", "unreachable", "disconnected", "too_large"

MAX_REPLY_BYTES = 1_000_000
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0

_PASSING_STATUSES = frozenset({408, 425, 429, *range(500, 600)})


class Reply(NamedTuple):
    """What came of asking.

    Attributes:
        failure: "" for an answer (status 200); else "timeout", "unreachable", "disconnected", "too_large", or "http_"
            and the status.
        content: the body of an answer or of an HTTP error; empty for other failures.
        attempts: how often it was tried.
        passing: of a failure: more patience might have helped.
    """

    failure: str
    content: bytes
    attempts: int
    passing: bool


class _Try(NamedTuple):
    """One attempt: as in `Reply`, and how long the server asks to wait before another."""

    failure: str
    content: bytes = b""
    passing: bool = False
    wait_seconds: float = 0.0


def is_url(path: str) -> bool:
    """Whether this names an endpoint and no file."""
    return path.startswith(("http://", "https://"))


def base_url(address: str) -> str:
    """The address without a slash at its end, and with /v1 where it has no path.

    Raises:
        UserError: it has no host, an impossible port, a user name, a query or a fragment.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        usable = bool(httpx2.URL(address).host) and (parts.port is None or parts.port > 0)
    except (ValueError, httpx2.InvalidURL):
        usable = False
    if not usable or parts.query or parts.fragment:
        raise UserError(f"judge {address!r}: give the address of a server, such as http://localhost:8000/v1.")
    if parts.username is not None:
        raise UserError(f"judge: an address with a user name or password. Put a key into {KEY_VARIABLE} instead.")
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))


class Endpoint:
    """A server at an address, and how patiently it is asked.

    Attributes:
        url: as `base_url` gives it.
        concurrency: connections open at a time, at most.
    """

    def __init__(self, address: str, *, timeout_seconds: float, retries: int, concurrency: int, seed: int):
        """Args as in `config.judge`; `seed` is of the waits. Raises as `base_url`."""
        self.url, self.concurrency = base_url(address), concurrency
        self._timeout_seconds, self._retries, self._seed = timeout_seconds, retries, seed

    def client(self) -> httpx2.AsyncClient:
        """Connections to the server, for `ask`; to be used as an async context."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key := os.environ.get(KEY_VARIABLE, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=self.concurrency)
        return httpx2.AsyncClient(headers=headers, limits=limits, timeout=None)  # `_try` has one for the whole attempt

    async def ask(self, client: httpx2.AsyncClient, method: str, path: str, body: bytes = b"") -> Reply:
        """Asks until there is an answer, a failure that will not pass, or no retry left. Never raises."""
        for attempt in range(1, self._retries + 2):
            tried = await self._try(client, method, path, body)
            if not tried.passing or attempt > self._retries:
                break
            await asyncio.sleep(max(tried.wait_seconds, self._backoff_seconds(body, attempt)))
        return Reply(tried.failure, tried.content, attempt, tried.passing)

    async def _try(self, client: httpx2.AsyncClient, method: str, path: str, body: bytes) -> _Try:
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),  # of the whole: a server may send a byte now and then
                client.stream(method, self.url + path, content=body) as response,
            ):
                content = await _read(response)
        except TimeoutError:
            return _Try(TIMEOUT, passing=True)
        except httpx2.ConnectError:
            return _Try(UNREACHABLE, passing=True)
        except (httpx2.HTTPError, OSError):
            return _Try(DISCONNECTED, passing=True)
        if content is None:
            return _Try(TOO_LARGE)
        if response.status_code == 200:
            return _Try("", content)
        passing = response.status_code in _PASSING_STATUSES
        wait = min(retry_after_seconds(response.headers.get("retry-after", "")), LONGEST_WAIT_SECONDS)
        return _Try(f"http_{response.status_code}", content, passing, wait)

    def _backoff_seconds(self, body: bytes, attempt: int) -> float:
        """Half to all of the doubled wait: what failed together does not come back together."""
        share = random.Random(b"%d/%d/%b" % (self._seed, attempt, body)).uniform(0.5, 1)
        return share * min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS)


async def _read(response: httpx2.Response) -> bytes | None:
    """The body as it comes, never unpacked; None as soon as it is above `MAX_REPLY_BYTES`."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            return None
    return bytes(content)


def retry_after_seconds(header: str) -> float:
    """What a Retry-After header asks for, in seconds or as a date (RFC 9110, 10.2.3); 0 where it says nothing."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0
