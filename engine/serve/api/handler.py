"""HTTP handler: the server's routes, and completions in the form of the OpenAI API.

The status line is sent with the first token, so that an error before it has a real status. If the first token takes longer
than `HOLD_SECONDS`, a streaming client gets the status 200 and keep-alive comments instead; an error is then an event.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from mlx_lm.server import GenerationContext, Response

from engine.serve.compute.job import Job
from engine.serve.errors import RequestError, as_request_error
from engine.serve.metrics import CONTENT_TYPE

from .answer import Answer, Piece, as_chat_logprobs, as_text_logprobs
from .body import parse_object, read_body
from .http import CHAT_PATHS, GET_PATHS, TEXT_PATHS, ClientGone, HttpHandler
from .request import ParsedRequest, parse_request
from .usage import timings, usage

HOLD_SECONDS = 10.0  # without a status line
POLL_SECONDS = 0.05  # between two looks at the client's socket


class Handler(HttpHandler):
    """Routes of the server. Completions are assembled here, in packets of mlx-lm's `generate_response`."""

    def do_GET(self) -> None:
        self.answer(self._get)

    def do_POST(self) -> None:
        self.answer(self._post)

    def do_OPTIONS(self) -> None:
        self.answer(self._options)

    def do_HEAD(self) -> None:
        self.answer(self.refuse_method)

    do_PUT = do_DELETE = do_PATCH = do_TRACE = do_CONNECT = do_HEAD

    def _get(self) -> None:
        if self.path == "/health":
            state = self.service.state
            self.send(200 if state == "ok" else 503, {"status": state})
            return
        self.authorise()
        if self.path == "/metrics":
            self.send_bytes(200, self.service.metrics.text(), CONTENT_TYPE)
        elif self.path.rstrip("/") == "/v1/models":
            self.send(200, {"object": "list", "data": [self._model()]})
        elif self.path.startswith("/v1/models/"):
            name = unquote(self.path.removeprefix("/v1/models/"))
            if name != self.service.name:
                raise RequestError(404, f"the model {name[:200]!r} does not exist", param="model", code="model_not_found")
            self.send(200, self._model())
        elif self.path in (*CHAT_PATHS, *TEXT_PATHS):
            self.refuse_method()
        else:
            raise self._no_such_path()

    def _no_such_path(self) -> RequestError:
        return RequestError(404, f"{self.path[:200]} does not exist; use /v1/chat/completions", code="not_found")

    def _post(self) -> None:
        if self.path not in (*CHAT_PATHS, *TEXT_PATHS):
            if self.path in GET_PATHS or self.path.startswith("/v1/models/"):
                self.refuse_method()
            raise self._no_such_path()
        self.refuse_foreign_page()
        self.authorise()
        body = parse_object(read_body(self.headers, self.rfile, int(self.service.options.max_body_mb * 1e6)))  # type: ignore[arg-type]
        generator = self.service.ready()
        parsed = parse_request(body, self.service.served, chat=self.path in CHAT_PATHS)
        self.job = generator.submit(parsed.request, parsed.args, parsed.max_tokens)
        self._complete(parsed, self.job)

    def _options(self) -> None:
        if not self.service.options.cors:
            self.refuse_method()
        self.send_bytes(204, b"", None)

    def _complete(self, parsed: ParsedRequest, job: Job) -> None:
        self.stream, self.requested_model = parsed.stream, self.service.name
        self.request_id = f"{'chatcmpl' if parsed.chat else 'cmpl'}-{uuid.uuid4()}"
        chunk = ".chunk" if parsed.stream else ""
        self.object_type = f"chat.completion{chunk}" if parsed.chat else "text_completion"
        try:
            (self._stream if parsed.stream else self._whole)(parsed, job)
        except Exception as e:
            if not self.status or isinstance(e, ClientGone | OSError):
                raise
            self.event(as_request_error(e).as_dict())

    def _whole(self, parsed: ParsedRequest, job: Job) -> None:
        whole, answer = Piece(), None
        for response in self._responses(job):
            answer = answer or self._answer_of(parsed, job)
            piece = answer.add(response)
            whole.text += piece.text
            whole.reasoning += piece.reasoning
            whole.tool_calls += piece.tool_calls
            whole.logprobs += piece.logprobs
        figures = job.figures()
        body = self._packet(parsed, whole, answer.finish_reason if answer else "length", offset=0)
        body["usage"], body["timings"] = usage(figures), timings(figures, self.service.warning)
        self.send(200, body)

    def _stream(self, parsed: ParsedRequest, job: Job) -> None:
        answer, piece, offset = None, Piece(), 0
        for response in self._responses(job, stream=True):
            self.start_stream()
            answer = answer or self._answer_of(parsed, job)
            new = answer.add(response)
            new.logprobs = piece.logprobs + new.logprobs
            piece = new
            if piece and answer.finish_reason is None:
                self.event(self._packet(parsed, piece, None, offset))
                offset += len(piece.text)
                piece = Piece()
        figures = job.figures()
        last = self._packet(parsed, piece, answer.finish_reason if answer else "length", offset)
        last["timings"] = timings(figures, self.service.warning)
        self.start_stream()
        self.event(last)
        if parsed.include_usage:
            end = {**last, "choices": [], "usage": usage(figures)}
            self.event(end)
        self.write(b"data: [DONE]\n\n")

    def _responses(self, job: Job, *, stream: bool = False) -> Iterator[Response]:
        """The tokens of a job as they come. Raises `ClientGone`, or the job's error as a `RequestError`."""
        generator = self.service.generator
        assert generator is not None
        quiet_since = time.monotonic()
        while True:
            if self.gone():
                raise ClientGone
            try:
                item = job.take(POLL_SECONDS)
            except queue.Empty:
                if not generator.generation_available():
                    raise RequestError(500, "the generation thread has ended; restart the server") from None
                if stream and time.monotonic() - quiet_since > HOLD_SECONDS:
                    quiet_since = time.monotonic()
                    self.start_stream()
                    self.write(b": keep-alive\n\n")
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise as_request_error(item)
            if isinstance(item, Response):
                quiet_since = time.monotonic()
                yield item

    def _answer_of(self, parsed: ParsedRequest, job: Job) -> Answer:
        assert isinstance(job.context, GenerationContext)
        tools, stream, logprobs = parsed.request.tools, parsed.stream, parsed.args.logprobs
        return Answer(job.context, self.service.tokenizer, tools, stream=stream, logprobs=logprobs)

    def _packet(self, parsed: ParsedRequest, piece: Piece, finish: Any, offset: int) -> dict[str, Any]:
        counts = None if self.stream else 0  # mlx-lm requires counts for a whole answer; `usage` replaces them
        calls: Any = piece.tool_calls
        body = self.generate_response(piece.text, finish, counts, counts, tool_calls=calls, reasoning_text=piece.reasoning)
        choice = body["choices"][0]
        choice["logprobs"] = None
        if parsed.args.logprobs:
            choice["logprobs"] = (
                as_chat_logprobs(piece.logprobs) if parsed.chat else as_text_logprobs(piece.logprobs, offset)
            )
        return dict(body)

    def _model(self) -> dict[str, Any]:
        return {"id": self.service.name, "object": "model", "created": self.service.created, "owned_by": "headrace"}
