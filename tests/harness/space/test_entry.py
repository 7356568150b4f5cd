"""An entry: its values and Optuna's parameter map to each other, and values outside are refused."""

from __future__ import annotations

import pytest

from harness import ConfigError
from harness.space.entry import Entry, shown


def test_floats_have_four_digits_and_steps_their_grid() -> None:
    assert Entry("cache_gb", "float", 0.01, 0.1, log=True).decode(0.0123456) == 0.01235
    stepped = Entry("cache_gb", "float", 1, 2, step=0.25)
    assert stepped.decode(1.4) == 1.5 and stepped.encode(1.75) == 1.75
    with pytest.raises(ConfigError, match=r"cache_gb=1\.6 is outside its search space \(1 \.\. 2 in steps of 0\.25\)"):
        stepped.encode(1.6)


def test_an_ordinal_entry_is_an_index_and_takes_words() -> None:
    entry = Entry("sync_window", "ordinal", values=(1, 4, 0))
    assert entry.encode("all") == 2 and entry.decode(2) == 0
    with pytest.raises(ConfigError, match=r"sync_window=7 is outside its search space \(1, 4, 0\); move it or widen"):
        entry.encode(7)


def test_the_nearest_value() -> None:
    assert Entry("read_block_kib", "ordinal", values=(16, 64, 256)).nearest(100) == 64
    assert Entry("io_mode", "choice", values=("direct",)).nearest("buffered") == "direct"
    assert Entry("cache_gb", "float", 1, 4, log=True).nearest(None) == 2.0
    assert Entry("read_threads", "int", 2, 8).nearest(1) == 2


def test_the_ends_of_a_lossy_knob_begin_with_the_largest_loss() -> None:
    assert Entry("expert_bits", "ordinal", values=(None, 8, 4)).ends() == (4, None)
    assert Entry("cold_drop", "float", 0, 1.5).ends() == (1.5, 0)


def test_values_as_text() -> None:
    assert shown((None, 0.123456, "direct")) == "[unset, 0.1235, direct]"
