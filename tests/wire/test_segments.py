"""Kept shared segments: who may write, when they are used again, and how long memory lives."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.wire import pickling
from lorry.wire.segments import ALIGNMENT, SegmentMap, SegmentPool, offsets

MIB = 1 << 20


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pool() -> Iterator[SegmentPool]:
    pool = SegmentPool()
    yield pool
    pool.close()


def arrive(pool: SegmentPool, segments: SegmentMap, pieces: list[bytes]) -> tuple[int, list[memoryview]]:
    segment, _ = pool.write(pieces)
    if not segment.sent:
        segment.sent = True
        segments.add(segment.number, os.dup(segment.fd))
    return segment.number, segments.pieces(segment.number, [len(piece) for piece in pieces])


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_pieces_are_aligned_and_do_not_overlap(lengths: list[int]) -> None:
    starts, end = offsets(lengths)
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert all(a + n <= b for a, n, b in zip(starts, lengths, [*starts[1:], end], strict=True))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_pieces_arrive_as_they_were(pieces: list[bytes]) -> None:
    pool, segments = SegmentPool(), SegmentMap()
    _, views = arrive(pool, segments, pieces)
    assert [bytes(view) for view in views] == pieces


def test_the_receiver_can_only_read(pool: SegmentPool) -> None:
    segment, _ = pool.write([b"x" * 100])
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fd, segment.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.write(segment.fd, b"y")
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)
    assert segment.view[:3] == b"xxx"


def test_arrays_arrive_read_only(pool: SegmentPool) -> None:
    first, buffers = pickling.dumps(np.arange(100_000))
    segments = SegmentMap()
    segment, _ = pool.write([first, *buffers])
    segments.add(segment.number, os.dup(segment.fd))
    array = pickling.loads(segments.pieces(segment.number, [len(first), *map(len, buffers)]))
    assert array[-1] == 99_999
    with pytest.raises(ValueError):
        array[0] = 1


def test_a_segment_is_used_again_only_after_its_release(pool: SegmentPool) -> None:
    first, _ = pool.write([b"a"])
    second, _ = pool.write([b"b"])
    assert second is not first
    pool.release(first.number)
    assert pool.write([b"c"])[0] is first


def test_an_unknown_release_means_nothing(pool: SegmentPool) -> None:
    pool.release(12345)


def test_a_large_segment_is_not_wasted_on_a_small_payload(pool: SegmentPool) -> None:
    large, _ = pool.write([bytes(16 * MIB)])
    pool.release(large.number)
    assert pool.write([b"x" * (2 * MIB)])[0] is not large


def test_above_the_budget_free_segments_are_given_up_first_then_files_are_used(tmp_path: Path) -> None:
    pool = SegmentPool(budget=4 * MIB, folder=str(tmp_path))
    old, _ = pool.write([bytes(3 * MIB)])
    pool.release(old.number)
    new, dropped = pool.write([bytes(4 * MIB)])
    assert dropped == [old.number]
    assert new.in_memory
    spilled, _ = pool.write([b"z" * MIB])
    assert not spilled.in_memory
    segments = SegmentMap()
    segments.add(spilled.number, os.dup(spilled.fd))
    assert bytes(segments.pieces(spilled.number, [MIB])[0][:3]) == b"zzz"
    with pytest.raises(OSError):
        os.write(spilled.fd, b"y")
    assert list(tmp_path.iterdir()) == []
    before = open_descriptors()
    pool.release(spilled.number)
    assert open_descriptors() < before
    pool.close()


def test_segments_given_up_for_a_payload_that_found_no_room_are_told_of_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SegmentPool(budget=4 * MIB, folder=str(tmp_path))
    old, _ = pool.write([bytes(3 * MIB)])
    pool.release(old.number)
    with monkeypatch.context() as broken:
        broken.setattr(os, "memfd_create", lambda *_: (_ for _ in ()).throw(OSError(12, "no memory")))
        with pytest.raises(OSError):
            pool.write([bytes(4 * MIB)])
    assert pool.write([b"x"])[1] == [old.number]
    pool.close()


def test_a_pool_that_goes_takes_its_descriptors_along() -> None:
    before = open_descriptors()
    pool = SegmentPool()
    pool.write([b"x"])
    assert open_descriptors() > before
    del pool
    gc.collect()
    assert open_descriptors() == before


def test_unused_is_exact_while_views_slices_or_arrays_live(pool: SegmentPool) -> None:
    segments = SegmentMap()
    number, views = arrive(pool, segments, [b"p" * 1000, b"q" * 1000])
    assert segments.unused() == []
    slice_of_it = views[1][10:20]
    del views
    assert segments.unused() == []
    array = np.frombuffer(slice_of_it, dtype=np.uint8)
    del slice_of_it
    assert segments.unused() == []
    part = array[2:4]
    del array
    assert segments.unused() == []
    del part
    assert segments.unused() == [number]
    assert segments.unused() == []


def test_a_dropped_segment_lives_as_long_as_values_refer_to_it(pool: SegmentPool) -> None:
    segments = SegmentMap()
    number, views = arrive(pool, segments, [b"still here"])
    segments.drop(number)
    pool.close()
    gc.collect()
    assert bytes(views[0]) == b"still here"
    assert segments.unused() == []


def test_a_reference_beyond_the_segment_is_refused(pool: SegmentPool) -> None:
    segments = SegmentMap()
    number, _ = arrive(pool, segments, [b"x"])
    with pytest.raises(ValueError):
        segments.pieces(number, [2 * MIB])
    with pytest.raises(KeyError):
        segments.pieces(999, [1])


def test_a_new_connection_forgets_who_had_what(pool: SegmentPool) -> None:
    segment, _ = pool.write([b"x"])
    segment.sent = True
    pool.forget_receivers()
    assert not segment.sent
    assert pool.write([b"y"])[0] is segment
