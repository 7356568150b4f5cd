"""Request errors: what a client gets instead of an answer, in the form of the OpenAI API."""

from __future__ import annotations

from typing import Any

from engine.errors import HeadraceError, ReadError, first_line

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(HeadraceError):
    """An error of one request with its HTTP status.

    `param` names the field of the request. `code` is the short name that clients compare. `headers` are sent with the
    answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    def as_dict(self) -> dict[str, Any]:
        """The body of the answer: `{"error": {"message", "type", "param", "code"}}`."""
        kind = TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_request_error(e: Exception) -> RequestError:
    """The answer to an error of the engine: 500 with the first line of its message."""
    if isinstance(e, RequestError):
        return e
    code = "read_error" if isinstance(e, ReadError) else "engine_error"
    message = str(e) if isinstance(e, HeadraceError) else f"{type(e).__name__}: {first_line(e)}"
    return RequestError(500, message, code=code)
