"""Prefix folder: the limit, the order of eviction, damaged files, a full disk, and two servers on one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from engine.errors import HeadraceError
from engine.prompt_cache import folder as module
from engine.prompt_cache.folder import PrefixFolder, Words

KEY, OTHER = "a" * 16, "b" * 16
WORDS = Words("--prompt-cache-dir", "--prompt-cache-disk-gb", "prefixes stay in memory only")


class Said(list):
    def __call__(self, line):
        self.append(line)


def cache(tokens=8, kv=None):
    kv = kv or KVCache()
    values = mx.random.normal((1, 1, tokens, 64))
    kv.update_and_fetch(values, values)
    return [kv]


def make(path, *, key=KEY, limit=1 << 30, said=None):
    return PrefixFolder(path, key, limit, Said() if said is None else said, WORDS)


def add(folder, *tokens, **kind):
    return folder.save(np.array(tokens), cache(len(tokens)), **{"kind": "user", **kind})


def names(folder):
    return sorted(f.tokens.tolist() for f in folder.refresh())


def test_survives_a_restart_and_is_private(tmp_path):
    folder = make(tmp_path / "deep" / "prefixes")
    add(folder, 1, 2, 3)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    again = make(folder.path)
    (file,) = again.refresh()
    assert again.load(file)[0].offset == 3 and len(again) == 1 and again.nbytes == file.nbytes


def test_files_of_another_key_are_counted_and_not_used(tmp_path):
    add(make(tmp_path, key=OTHER), 1, 2, 3)
    folder = make(tmp_path)
    assert not folder.refresh() and folder.nbytes > 0 and folder.find(np.array([1, 2, 3])) is None
    assert folder.others() == folder.others(np.array([1, 2, 3])) == 1 and not folder.others(np.array([1, 2]))


def test_a_file_renamed_to_another_key_is_refused(tmp_path):
    said = Said()
    file = add(make(tmp_path, key=OTHER), 1, 2, 3)
    file.path.rename(tmp_path / file.path.name.replace(OTHER, KEY))
    assert not make(tmp_path, said=said).refresh() and not list(tmp_path.iterdir())
    assert len(said) == 1 and "damaged (its header does not belong to its name" in said[0]


def test_shorter_prefixes_that_can_be_cut_out_are_removed(tmp_path):
    folder = make(tmp_path)
    for tokens in ((1, 2), (1, 9, 9), (1, 2, 3)):
        add(folder, *tokens)
    assert names(folder) == [[1, 2, 3], [1, 9, 9]]


def test_least_recently_used_file_goes_first(tmp_path):
    folder = make(tmp_path)
    files = [add(folder, n, n) for n in range(3)]
    for age, file in enumerate(files):
        os.utime(file.path, (time.time() - 100 + age,) * 2)
    folder.touch(files[0])
    folder.limit = folder.nbytes + (64 << 10)  # what a header may take
    add(folder, 9, 9)
    assert names(folder) == [[0, 0], [2, 2], [9, 9]] and folder.nbytes <= folder.limit
    smaller = make(tmp_path, limit=files[0].nbytes, key=OTHER)  # the limit holds at the start, for all models
    assert smaller.nbytes <= files[0].nbytes
    assert names(folder) == [[9, 9]]


def test_larger_prefix_than_the_limit_is_said_once(tmp_path):
    said = Said()
    folder = make(tmp_path, limit=1000, said=said)
    assert add(folder, 1, 2) is None and add(folder, 1, 3) is None
    assert len(said) == 1 and "above --prompt-cache-disk-gb 1e-06" in said[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x10" + bytes(40)])
def test_damaged_file_is_said_and_removed(tmp_path, content):
    said = Said()
    file = add(make(tmp_path), 1, 2)
    file.path.write_bytes(content)
    assert not make(tmp_path, said=said).refresh()
    assert len(said) == 1 and "damaged" in said[0] and not list(tmp_path.iterdir())


def test_damage_that_only_the_checksum_shows_is_found_on_loading(tmp_path):
    said = Said()
    file = add(make(tmp_path), 1, 2)
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    folder = make(tmp_path, said=said)
    (found,) = folder.refresh()
    assert folder.load(found) is None and "checksum" in said[0]
    assert not folder.refresh() and not list(tmp_path.iterdir())


def test_two_servers_share_a_folder(tmp_path):
    said = Said()
    one, two = make(tmp_path, said=said), make(tmp_path, said=said)
    add(one, 1, 2)
    (file,) = two.refresh()
    file.path.unlink()  # as the other's eviction does
    assert two.load(file) is None and not two.refresh() and not said
    two.touch(file)


def test_full_disk_is_said_once_until_a_write_succeeds(tmp_path, monkeypatch):
    said = Said()
    folder = make(tmp_path, said=said)
    errors = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[write] Unable to write")]
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_prefix", lambda *a: (_ for _ in ()).throw(errors.pop(0)))
        assert add(folder, 1, 2) is None and add(folder, 1, 2) is None
    assert len(said) == 1 and "No space left" in said[0] and "memory only" in said[0]
    assert add(folder, 1, 2) is not None
    monkeypatch.setattr(module, "LEFT_FREE", 1 << 62)
    assert add(folder, 1, 2, 3) is None and len(said) == 2


def test_class_without_a_format_stays_in_memory(tmp_path):
    class Own(KVCache):
        pass

    said = Said()
    folder = make(tmp_path, said=said)
    assert folder.save(np.array([1, 2]), cache(2, Own()), "user") is None
    assert said == ["prompt cache: mlx-lm's file format cannot hold Own; prefixes stay in memory only"]


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadraceError, match="--prompt-cache-dir"):
        make(tmp_path / "file" / "prefixes")
    with pytest.raises(HeadraceError, match="--prompt-cache-dir"):
        make(tmp_path / "file")


def test_temporary_files_of_ended_servers_are_removed(tmp_path, monkeypatch):
    """A writer holds a lock, which ends with its process: no time of a file counts."""
    for name in ("ended", "writing"):
        (tmp_path / f".prefix-{name}.tmp.safetensors").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    with open(tmp_path / ".prefix-writing.tmp.safetensors") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make(tmp_path, limit=0)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".prefix-writing.tmp.safetensors", "notes.txt"]

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:  # whether a server writes it is unknown, so it stays
        patch.setattr(fcntl, "flock", none)
        folder = make(tmp_path)
        assert add(folder, 1, 2) is not None
        assert (tmp_path / ".prefix-writing.tmp.safetensors").exists()
    make(tmp_path)
    assert not (tmp_path / ".prefix-writing.tmp.safetensors").exists()


@pytest.mark.parametrize("clock", ["right", "two hours slow", "a year fast", "no times"])
def test_order_of_use_holds_on_a_share_with_any_clock(tmp_path, monkeypatch, clock):
    """The times of new files are those of the share; a use comes after all others, also for another server."""
    now, write = time.time(), module.write_prefix
    shift = {"right": 0, "two hours slow": -7200, "a year fast": 366 * 86400}.get(clock, 0)

    def written(*given):
        file = write(*given)
        os.utime(file.path, (now + shift,) * 2)
        return file

    monkeypatch.setattr(module, "write_prefix", written)
    one, two = make(tmp_path), make(tmp_path)
    files = [add(one, n, n) for n in range(3)]
    if clock == "no times":
        for file in files:
            os.utime(file.path, (now, now))
        monkeypatch.setattr(module.os, "utime", lambda *a, **k: None)
        one.touch(files[0])
        one.limit = one.nbytes
        add(one, 9, 9)
        assert [0, 0] in names(one)
        return
    two.touch(files[0])
    two.touch(files[1])
    two.limit = two.nbytes + (64 << 10)
    add(two, 9, 9)
    assert names(one) == [[0, 0], [1, 1], [9, 9]]
