"""Errors in the form of the OpenAI API."""

from __future__ import annotations

from engine import ReadError
from engine.serve.errors import RequestError, as_request_error


def test_the_form_of_an_error() -> None:
    error = RequestError(400, "wrong", param="n", code="c").as_dict()["error"]
    assert error == {"message": "wrong", "type": "invalid_request_error", "param": "n", "code": "c"}
    assert RequestError(503, "x").as_dict()["error"]["type"] == "server_error"
    assert RequestError(429, "x").as_dict()["error"]["type"] == "rate_limit_error"


def test_errors_of_the_engine_are_500() -> None:
    assert as_request_error(ReadError("expert 3")).code == "read_error"
    other = as_request_error(ValueError("a\nb"))
    assert (other.status, str(other), other.code) == (500, "ValueError: a", "engine_error")
    same = RequestError(400, "x")
    assert as_request_error(same) is same
