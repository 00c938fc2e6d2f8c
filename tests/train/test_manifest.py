from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from lorry.train.manifest import Chunk, Entry, Manifest
from lorry.wire.codec import from_json, to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CHUNKS = st.builds(Chunk, sha256=st.just("ab" * 32), size=st.integers(0, 1 << 40))
ENTRIES = st.builds(
    Entry,
    name=st.text(),
    dtype=st.text(),
    shape=st.lists(st.integers(0, 1 << 40), max_size=3).map(tuple),
    chunks=st.lists(CHUNKS, max_size=3).map(tuple),
)
MANIFESTS = st.builds(
    Manifest,
    run_id=st.text(),
    step=st.integers(0),
    token=st.integers(1),
    parent=st.none() | st.just("cd" * 32),
    entries=st.lists(ENTRIES, max_size=3).map(tuple),
    structure=JSON,
    fingerprint=st.dictionaries(st.text(), st.text(), max_size=3),
    created_at=st.floats(0, 1e10),
    stall_seconds=st.floats(0, 1e3),
)


@given(MANIFESTS)
def test_a_manifest_that_was_written_and_read_is_the_same_and_has_the_same_id(manifest: Manifest) -> None:
    again = from_json(Manifest, to_json(manifest))
    assert again == manifest
    assert again.id == manifest.id


def test_the_format_on_disk_is_this() -> None:
    """Checkpoints outlive versions of Lorry: when this fails, old ones cannot be found any more."""
    manifest = Manifest(
        run_id="r",
        step=7,
        token=2,
        parent=None,
        entries=(Entry(name="w", dtype="float32", shape=(2,), chunks=(Chunk(sha256="00" * 32, size=8),)),),
        structure={"w": {"$entry": "w"}},
        fingerprint={"python": "3.11"},
        created_at=1.5,
        stall_seconds=0.25,
    )
    assert to_json(manifest) == (
        '{"created_at":1.5,"entries":[{"chunks":[{"sha256":"' + "00" * 32 + '","size":8}],"dtype":"float32",'
        '"name":"w","shape":[2]}],"fingerprint":{"python":"3.11"},"parent":null,"run_id":"r","stall_seconds":0.25,'
        '"step":7,"structure":{"w":{"$entry":"w"}},"token":2}'
    )
    assert manifest.id != dataclasses.replace(manifest, step=8).id


def test_each_chunk_is_named_once() -> None:
    chunk = Chunk(sha256="00" * 32, size=1)
    entry = Entry(name="a", dtype="bytes", shape=(2,), chunks=(chunk, chunk))
    manifest = Manifest(
        run_id="r",
        step=1,
        token=1,
        parent=None,
        entries=(entry, dataclasses.replace(entry, name="b")),
        structure=None,
        fingerprint={},
        created_at=0.0,
        stall_seconds=0.0,
    )
    assert manifest.chunks() == {chunk}
