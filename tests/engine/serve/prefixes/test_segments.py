"""Segments: which of them are worth a pass over the experts."""

from __future__ import annotations

from engine.serve.prefixes.segments import join_segments

SEGMENTS, KINDS = [[1, 2, 3], [4, 5], [6]], ["system", "user", "assistant"]


def test_cache_that_can_be_cut_needs_one_segment():
    assert join_segments(SEGMENTS, KINDS, can_cut=True, chunk=2) == ([[1, 2, 3, 4, 5, 6]], ["user"])


def test_system_prompt_is_a_segment_from_a_chunk_on():
    assert join_segments(SEGMENTS, KINDS, can_cut=False, chunk=3) == (SEGMENTS, KINDS)
    assert join_segments(SEGMENTS, KINDS, can_cut=False, chunk=4) == ([[1, 2, 3, 4, 5], [6]], ["user", "assistant"])
    assert SEGMENTS == [[1, 2, 3], [4, 5], [6]]


def test_plain_prompt_stays():
    assert join_segments([[1, 2]], ["assistant"], can_cut=True, chunk=8) == ([[1, 2]], ["assistant"])
