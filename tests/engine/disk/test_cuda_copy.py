"""CUDA copies, with a driver that only copies memory: the order of the calls, and error codes as one line.

The tests cover engine/native/device.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from cores import Books
from cuda_fake import FakeCuda
from reads import ranges, reader

from engine.disk import cuda_copy
from engine.errors import HeadraceError
from engine.native import core

OPENING = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
ATTACHING = ["cuCtxSetCurrent", "cuStreamCreate", "cuMemHostRegister_v2"]


@pytest.fixture
def cuda(tmp_path: Path) -> FakeCuda:
    return FakeCuda(tmp_path)


def test_the_drivers_name() -> None:
    assert cuda_copy.cuda_driver() == "libcuda.so.1"
    assert mx.default_device() is not None


def test_a_thread_opens_attaches_copies_and_detaches(file: Path, cuda: FakeCuda) -> None:
    r = reader(file, threads=1, device=cuda.path)
    assert cuda.calls == OPENING
    assert r.native.submit(ranges([(0, 100)])[0]).wait() is None
    r.close()
    assert cuda.calls == [
        *OPENING, *ATTACHING, "cuMemcpyAsync", "cuStreamSynchronize", "cuMemHostUnregister", "cuStreamDestroy_v2"
    ]  # fmt: skip


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_driver_brings_every_byte(file: Path, cuda: FakeCuda, direct: bool, threads: int) -> None:
    places = [(5, 20_000), (20_005, 100), (90_000, 4096)]
    parts, buffers = ranges(places)
    cuda.invert()
    r = reader(file, threads=threads, kib=8, direct=direct, device=cuda.path)
    assert r.native.submit(parts).wait() is None
    r.close()
    assert cuda.copied == cuda.copied_from_locked == 24_196
    for (offset, n), buffer in zip(places, buffers, strict=True):
        assert bytes(255 - b for b in buffer) == file.read_bytes()[offset : offset + n]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("kib", [64, 4])
def test_the_driver_copies_only_what_was_made_of_staged_bytes(file: Path, cuda: FakeCuda, direct: bool, kib: int) -> None:
    """A copy of staged bytes by the driver, from or to pageable memory, took longer than the reads (H200)."""
    experts, size = np.arange(3), 10_000
    cuda.invert()
    r = reader(file, threads=2, kib=kib, direct=direct, device=cuda.path)
    slots = np.zeros((3, size // 2), np.float32)
    made = ("widen_bf16", [0], [size], 0, 0.0, None, slots.reshape(-1).view(np.uint8))
    pool, _ = Books(r.native, 3, 16.0).pool(3, experts[:0], size, staging=size, made=[made])
    pool.request(experts, None, False)
    assert pool.settle(experts) >= 0
    r.close()
    assert cuda.copied == cuda.copied_from_locked == slots.nbytes
    stored = np.frombuffer(file.read_bytes()[: 3 * size], np.uint16).astype(np.uint32) << 16
    assert (~slots.view(np.uint32).reshape(-1) == stored).all()


@pytest.mark.parametrize("name", [*ATTACHING, "cuMemcpyAsync", "cuStreamSynchronize"])
def test_an_error_of_the_delivery_reaches_the_caller(file: Path, cuda: FakeCuda, name: str) -> None:
    r = reader(file, threads=1, kib=4, device=cuda.path)
    cuda.breaks(name, 700)
    for _ in range(2):  # the thread is still there
        failure = r.native.submit(ranges([(0, 10_000)])[0]).wait()
        assert failure is not None and failure[:2] == (core.DEVICE, 700)
        assert str(r.error("expert 3", failure)) == "CUDA: a copy of expert 3 failed with code 700; restart the process"
    cuda.breaks(name, 0)
    parts, (buffer,) = ranges([(0, 10_000)])
    assert r.native.submit(parts).wait() is None
    r.close()
    assert bytes(buffer) == file.read_bytes()[:10_000]
    assert cuda.calls.count("cuStreamCreate") - (name == "cuStreamCreate") * 6 == cuda.calls.count("cuStreamDestroy_v2")


@pytest.mark.parametrize("name", OPENING)
def test_an_error_names_the_call(file: Path, cuda: FakeCuda, name: str) -> None:
    cuda.breaks(name, 999)
    with pytest.raises(HeadraceError, match=rf"CUDA: .*libcuda_fake.so: {name} failed with code 999; restart the process"):
        reader(file, device=cuda.path)


def test_a_library_that_is_no_driver(file: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=r"CUDA: .*_core.*: cuInit is missing; restart the process"):
        reader(file, device=str(core.__file__))
    with pytest.raises(HeadraceError, match=r"CUDA: .*missing.so: .*; restart the process"):
        reader(file, device=str(tmp_path / "missing.so"))


def test_page_locked_memory_of_the_doctor(cuda: FakeCuda) -> None:
    copy = core.DeviceCopy(cuda.path, 4096)
    copy.fill(7)
    into = bytearray(16)
    copy.copy(into)
    assert into == bytes([7]) * 16 and cuda.copied == 16
    with pytest.raises(ValueError, match="4097 bytes are more than the page-locked memory of 4096"):
        copy.copy(bytearray(4097))
    cuda.breaks("cuMemcpyAsync", 700)
    with pytest.raises(OSError, match="a copy failed with code 700"):
        copy.copy(into)
    del copy
    assert cuda.calls[-2:] == ["cuMemHostUnregister", "cuStreamDestroy_v2"]
