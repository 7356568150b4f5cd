"""HTTP of one connection: authorisation, headers, errors as JSON, and the client's disconnection, on mlx-lm's `APIHandler`.

Each connection serves one request and is closed after it.
"""

from __future__ import annotations

import hmac
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from mlx_lm.server import APIHandler

from engine.serve.compute.job import Job
from engine.serve.errors import RequestError, as_request_error
from engine.system.strict_json import to_json

from .service import Service
from .usage import log_line

CHAT_PATHS = ("/v1/chat/completions", "/chat/completions")
TEXT_PATHS = ("/v1/completions", "/completions")
GET_PATHS = ("/health", "/metrics", "/v1/models")
CLIENT_GONE = 499  # in the log and the metrics: the client closed the connection before its answer was complete


class ClientGone(Exception):
    """The client has closed its connection."""


class HttpHandler(APIHandler):
    """One connection. `status` is 0 until a status line is sent; `job` is the request's job once it is queued."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds for each read and write
    server_version, sys_version = "headrace", ""

    def __init__(self, service: Service, *args: Any) -> None:
        self.service = service
        self.status = 0
        self.job: Job | None = None
        self._begin = time.perf_counter()
        super().__init__(None, *args, system_fingerprint=service.fingerprint)  # type: ignore[arg-type]

    def answer(self, route: Callable[[], None]) -> None:
        """Run one request, then log and count it."""
        self.close_connection = True
        self.path = self.path.partition("?")[0]
        with self.service.open_request():
            try:
                route()
            except RequestError as e:
                self._send_error(e)
            except (ClientGone, OSError):
                self.status = CLIENT_GONE
            except Exception as e:
                self._send_error(as_request_error(e))
            finally:
                if self.job is not None:
                    self.job.cancel()
                self._log()

    def refuse_method(self) -> None:
        allowed = "POST" if self.path in (*CHAT_PATHS, *TEXT_PATHS) else "GET"
        raise RequestError(405, f"{self.command} is not allowed here; use {allowed}", headers={"Allow": allowed})

    def authorise(self) -> None:
        key = self.service.options.api_key
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if key and not hmac.compare_digest(given.encode(errors="replace"), key.encode()):
            raise RequestError(
                401, "the API key is missing or wrong; send it as: Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def refuse_foreign_page(self) -> None:
        """Refuse a request of a web page: any page can send one to 127.0.0.1, and its browser names the page's origin."""
        origin, cors = self.headers.get("Origin"), self.service.options.cors
        if origin is not None and "*" not in cors and origin not in cors:
            raise RequestError(
                403, f"pages of {origin[:200]} may not use this server; allow them with --cors", code="origin"
            )

    def start_stream(self) -> None:
        if not self.status:
            self._head(200, {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})

    def event(self, body: dict[str, Any]) -> None:
        self.write(f"data: {to_json(body)}\n\n".encode())

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, to_json(body).encode(), "application/json", headers)

    def send_bytes(self, status: int, data: bytes, kind: str | None, headers: dict[str, str] | None = None) -> None:
        length = {"Content-Type": kind, "Content-Length": str(len(data))} if kind else {}
        self._head(status, {**length, **(headers or {})})
        if self.command != "HEAD":
            self.write(data)

    def _send_error(self, e: RequestError) -> None:
        """Send an error's body and take in what the client still sends, so that its system does not discard the answer."""
        if self.status:
            return
        try:
            self.send(e.status, e.as_dict(), e.headers)
            if self.command == "POST":
                self._drain()
        except OSError:
            self.status = 499

    def _drain(self, seconds: float = 3.0, most: int = 1 << 28) -> None:
        deadline = time.monotonic() + seconds
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(0.5)
        while most > 0 and time.monotonic() < deadline and (part := self.connection.recv(1 << 16)):
            most -= len(part)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self._set_cors_headers()
        self.end_headers()

    def _set_cors_headers(self) -> None:
        cors, origin = self.service.options.cors, self.headers.get("Origin") if hasattr(self, "headers") else None
        if "*" in cors or (origin and origin in cors):
            self.send_header("Access-Control-Allow-Origin", "*" if "*" in cors else str(origin))
            self.send_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
            self.send_header("Access-Control-Allow-Headers", "*, Authorization")
            self.send_header("Vary", "Origin")

    def gone(self) -> bool:
        """Whether the client has closed its side of the connection."""
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class's own errors, for a request that it cannot parse. An unknown method is 405."""
        self.close_connection = True
        self.request_version = "HTTP/1.1"  # it is 0.9, which has no headers, until the first line is parsed
        self._send_error(RequestError(405 if code == 501 else int(code), message or "the request is not HTTP"))
        self._log()

    def log_message(self, format: str, *args: Any) -> None:
        """The server has a log of its own."""

    def _log(self) -> None:
        path = getattr(self, "path", "")
        endpoint = path if path in (*CHAT_PATHS, *TEXT_PATHS, *GET_PATHS) else "other"
        self.service.metrics.requests.labels(endpoint, str(self.status)).inc()
        if endpoint in ("/health", "/metrics") and self.status == 200:
            return
        figures = self.job.figures() if self.job is not None else None
        if figures is not None and figures.prompt_s + figures.decode_s > 0:
            self.service.metrics.finished(figures)
        shown = "".join(c if c.isprintable() else "?" for c in f"{self.command or '-'} {path}"[:120])
        rest = f" {log_line(figures)}" if figures is not None else ""
        self.service.log(f"{shown} {self.status} {time.perf_counter() - self._begin:.2f} s{rest}")
