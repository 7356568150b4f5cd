"""The queue: order, limits and requests that compute alone."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from engine.serve.compute.job import Job
from engine.serve.compute.waiting import WaitingRequests
from engine.serve.errors import RequestError
from engine.stats import Stats


def job(*, alone: bool = False) -> Job:
    args: Any = SimpleNamespace(seed=None)
    return Job(args, args, ([1],), Stats(), alone=alone)


def test_order_and_limit() -> None:
    queue, jobs = WaitingRequests(parallel=1, limit=1), [job() for _ in range(3)]
    queue.put(jobs[0])
    queue.put(jobs[1])
    with pytest.raises(RequestError, match=r"--queue is 1; try again") as e:
        queue.put(jobs[2])
    assert e.value.status == 429 and int(e.value.headers["Retry-After"]) >= 1
    assert queue.next(None) is jobs[0] and queue.next(None) is None and queue.running == 1
    jobs[0].put(None)
    queue.put(jobs[2])
    assert queue.next(None) is jobs[1]
    jobs[1].put(ValueError("x"))
    assert queue.next(None) is jobs[2] and (queue.running, queue.waiting) == (1, 0)


def test_a_seeded_request_computes_alone() -> None:
    queue, jobs = WaitingRequests(parallel=2, limit=9), [job(), job(alone=True), job(), job()]
    for one in jobs:
        queue.put(one)
    assert queue.next(None) is jobs[0] and queue.next(None) is None
    jobs[0].put(None)
    assert queue.next(None) is jobs[1] and queue.next(None) is None
    jobs[1].put(None)
    assert queue.next(None) is jobs[2] and queue.next(None) is jobs[3]
    assert jobs[2].figures().shared and not jobs[1].figures().shared


def test_a_client_that_left_the_queue_is_skipped() -> None:
    queue, jobs = WaitingRequests(parallel=1, limit=0), [job(), job()]
    queue.put(jobs[0])
    jobs[0].cancel()
    queue.put(jobs[1])
    assert queue.next(None) is jobs[1]


def test_a_new_job_wakes_the_thread_that_waits() -> None:
    queue, one = WaitingRequests(parallel=1, limit=0), job()
    threading.Timer(0.02, queue.put, (one,)).start()
    assert queue.next(10) is one


def test_a_closed_queue_refuses() -> None:
    queue, one = WaitingRequests(parallel=1, limit=2), job()
    queue.put(one)
    assert queue.close() == [one]
    with pytest.raises(RequestError, match="stopping") as e:
        queue.put(job())
    assert e.value.status == 503
