"""Jobs: cancellation and figures."""

from __future__ import annotations

import math
import queue
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.server import GenerationContext, Response

from engine.errors import HeadraceError
from engine.serve.compute.job import Cancelled, Job
from engine.stats import Stats


def job(stats: Stats | None = None, **kwargs: Any) -> Job:
    args: Any = SimpleNamespace(seed=None, sampling=SimpleNamespace(temperature=0))
    request: Any = SimpleNamespace(messages=[])
    return Job(request, args, ([1, 2, 3, 4],), stats or Stats(), alone=False, **kwargs)


def context() -> GenerationContext:
    return GenerationContext(False, False, None, None, "normal", [1, 2, 3, 4], 1)  # type: ignore[arg-type]


def token(finish: str | None = None) -> Response:
    return Response("a", 1, -1.0, finish, ())


def test_figures_of_a_request() -> None:
    stats = Stats()
    stats.count_layers(1)
    one = job(stats)
    one.put(context())
    one.put((4, 4))
    stats.layers[0] = 3, 1, 1, 100, 1
    one.put(token())
    one.put(token("length"))
    one.put(None)
    figures = one.figures()
    assert (figures.prompt_tokens, figures.cached_tokens, figures.processed_tokens, figures.completion_tokens) == (
        4,
        1,
        3,
        2,
    )
    assert figures.hit_rate == 0.75 and figures.bytes_read == 100 and one.finished
    assert 0 <= figures.prompt_s <= figures.ttft_s and figures.decode_s >= 0
    assert [type(one.take(0)).__name__ for _ in range(5)] == [
        "GenerationContext",
        "tuple",
        "Response",
        "Response",
        "NoneType",
    ]
    with pytest.raises(queue.Empty):
        one.take(0.001)


def test_a_cancelled_job_stops_at_its_next_step_and_is_finished_once() -> None:
    one, finished = job(), []
    one.on_finish = finished.append
    one.put(context())
    one.cancel()
    assert one.context is not None and not one.context._should_stop
    one.put((1, 4))
    one.put(token())
    assert one.context._should_stop and finished == [one]


def test_a_prefill_outside_the_batch_is_ended_by_an_exception() -> None:
    one = job()
    one.single = True
    one.put(context())
    one.cancel()
    with pytest.raises(Cancelled):
        one.put((1, 4))


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error_of_the_request(logprob: float) -> None:
    one, finished = job(), []
    one.on_finish = finished.append
    one.put(context())
    one.put((4, 4))
    one.put(token())
    one.put(Response("a", 1, logprob, None, ()))
    items = [one.take(0) for _ in range(4)]
    assert isinstance(items[-1], HeadraceError) and "after 5 tokens are not finite" in str(items[-1])
    assert finished == [one] and one.context is not None and one.context._should_stop
