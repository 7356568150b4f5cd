"""Server: binds the port, serves an engine, and ends in order.

The port is bound before a model is loaded: a port in use is an error at once, and `/health` says that the model is loading.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from engine.engine import Engine
from engine.errors import HeadraceError, first_line
from engine.generation.prompts import template_note
from engine.knobs import GB
from engine.prompt_cache.folder import PrefixFolder, Words
from engine.prompt_cache.identity import cache_key
from engine.system.strict_json import to_json

from .api.handler import Handler
from .api.service import Service
from .compute.generator import Generator
from .errors import RequestError
from .options import ServeOptions, short_name
from .prompt_cache import PromptCache

MOST_CONNECTIONS = 256  # threads; further connections are closed with the status 503
WORDS = Words("--prompt-cache-dir", "--prompt-cache-disk-gb", "prefixes stay in memory only")
LAST_SECONDS = 5.0  # for clients to take the error that ends their request
JOIN_SECONDS = 10.0  # for the generation thread to end its step


class HttpServer(ThreadingHTTPServer):
    """Threads for at most `MOST_CONNECTIONS` connections."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, family: socket.AddressFamily, address: tuple[Any, ...], service: Service) -> None:
        self.address_family = family
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, functools.partial(Handler, service))

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's full name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        error = RequestError(503, f"{MOST_CONNECTIONS} connections are open; try again", code="too_many_connections")
        body = to_json(error.as_dict()).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
        )
        with contextlib.suppress(OSError):
            request.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is no error of the server; anything else is one line."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            print(f"error: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)


class Server:
    """A bound port, and the engine behind it once `serve` is called. Ended by `stop`, or with `close` at once."""

    def __init__(self, options: ServeOptions, name: str) -> None:
        """Bind the port and answer from now on. Raises `HeadraceError` if the port is in use or the address not allowed."""
        family, address = options.address()
        self.service = Service(options, options.name or name)
        try:
            self._http = HttpServer(family, address, self.service)
        except OSError as e:
            raise HeadraceError(
                f"--port {options.port} of {options.host} cannot be used ({e.strerror or e}); give another --port"
            ) from e
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self._stop = threading.Event()

    @property
    def url(self) -> str:
        """The address to paste into a client."""
        host = self.service.options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._http.server_port}/v1"

    def serve(self, engine: Engine) -> Generator:
        """Start the generation thread; requests are served from now on."""
        options, log = self.service.options, self.service.log
        generator = Generator(engine, options, make_prompt_cache(engine, options, log), log)
        self.service.attach(engine, generator)
        return generator

    def announce(self, engine: Engine) -> None:
        """Print what to paste into a client, and what a user should know about this model and these knobs."""
        generator, service = self.service.generator, self.service
        assert generator is not None
        cache = "" if engine.knobs.cache_gb is None else f", cache {engine.knobs.cache_gb:g} GB"
        if note := template_note(engine.tokenizer, service.name):
            print(note)
        if service.warning is not None:
            print(f"warning: {service.warning}")
        if generator.limit.tokens is not None:
            print(f"context: {generator.limit.tokens} tokens ({generator.limit.source})")
        print(f"serving {service.name} ({engine.mode}{cache}) at {self.url}", flush=True)

    def stop_on_signals(self, second: Any) -> None:
        """SIGINT and SIGTERM end `wait`. Another one, and one while the model loads, calls `second`. Main thread only."""

        def handle(*_: object) -> None:
            if self._stop.is_set() or self.service.generator is None:
                second()
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    def wait(self) -> None:
        """Wait for a signal, or for the end of the generation thread."""
        while not self._stop.wait(0.2):
            if self.service.generator is not None and self.service.state == "failed":
                break

    def stop(self) -> None:
        """Accept no more, let running requests finish within the grace, then end them with an error."""
        service, generator = self.service, self.service.generator
        service.stopping = True
        self._http.shutdown()
        self._http.server_close()
        error = RequestError(503, "the server is stopping; send the request again later", code="stopping")
        if generator is not None:
            for job in generator.waiting.close():
                job.fail(error)
            self._until_idle(service.options.grace_s)
            generator.end(error, JOIN_SECONDS)
            self._until_idle(LAST_SECONDS)
            generator.cache.close()

    def _until_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.service.open_requests and time.monotonic() < deadline:
            time.sleep(0.01)


def make_prompt_cache(engine: Engine, options: ServeOptions, log: Callable[[str], None]) -> PromptCache:
    """The prompt cache of an engine. Raises `HeadraceError` if its folder cannot be used."""
    folder = None
    if options.prompt_cache_dir is not None:
        limit = int(options.prompt_cache_disk_gb * GB)
        key = cache_key(engine.checkpoint, engine.knobs, engine.bits, engine.chunk.tokens)
        folder = PrefixFolder(options.prompt_cache_dir.expanduser(), key, limit, log, WORDS)
        if others := folder.others():
            log(f"prompt cache: {others} files in {folder.path} are of another model, setting or version and are not used")
    return PromptCache(max_bytes=int(options.prompt_cache_gb * GB), folder=folder, say=log)


@contextlib.contextmanager
def serving(engine: Engine, options: ServeOptions, name: str | None = None) -> Iterator[Server]:
    """A server of an engine inside the block, for tests and benchmarks."""
    server = Server(options, name or short_name(engine.checkpoint.path))
    try:
        server.serve(engine)
        yield server
    finally:
        server.stop()


def run(engine: Engine, options: ServeOptions) -> int:
    """Serve an engine until the generation thread ends or `stop` is called from elsewhere; returns the exit status."""
    with serving(engine, options) as server:
        server.announce(engine)
        server.wait()
        return 0 if server.service.state == "ok" else 1
