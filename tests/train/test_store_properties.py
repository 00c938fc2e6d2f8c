"""Whatever happens in whatever order, there is a checkpoint to go on from: the newest that is whole."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_saving import FROZEN, contents, saved, staged

from lorry.errors import CorruptCheckpointError, StaleAttemptError
from lorry.train.local_store import LocalStore
from lorry.train.manifest import Manifest
from lorry.train.store import resolve

PIECES = st.lists(st.sampled_from([FROZEN, b"", b"a" * 10, b"b" * 999, b"c" * 70]), min_size=1, max_size=3)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Attempts(RuleBasedStateMachine):
    """The model: every manifest that HEAD ever named, and which files are whole."""

    @initialize()
    def start(self) -> None:
        memory = Path("/dev/shm")  # thousands of fsyncs that nothing here depends on
        self.folder = Path(tempfile.mkdtemp(prefix="lorry-store-", dir=memory if memory.is_dir() else None))
        self.committed: dict[str, tuple[Manifest, list[bytes]]] = {}
        self.damaged: set[Path] = set()
        self.collected: set[str] = set()
        self.head: str | None = None
        self.step = 0
        self.restart()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def restart(self) -> None:
        """A process that starts: nothing of the one before but its files."""
        self.store = LocalStore(self.folder)
        self.token = self.store.begin()

    @rule(pieces=PIECES)
    def save(self, pieces: list[bytes]) -> None:
        self.step += 1
        manifest = staged(self.store, self.step, self.token, self.head, pieces)
        self.head = self.store.commit(manifest).manifest
        self.committed[self.head] = (manifest, pieces)
        self.look_again()

    def chunk(self, digest: str) -> Path:
        return self.folder / "chunks" / digest[:2] / digest

    @rule(pieces=PIECES)
    def die_before_the_commit(self, pieces: list[bytes]) -> None:
        staged(self.store, self.step + 1, self.token, self.head, pieces)
        self.restart()

    @rule(pieces=PIECES)
    def die_between_chunks_and_manifest(self, pieces: list[bytes]) -> None:
        staged(self.store, self.step + 1, self.token, self.head, pieces)
        self.store._settle()
        self.look_again()
        self.restart()

    @rule(pieces=PIECES)
    def a_stale_attempt_saves(self, pieces: list[bytes]) -> None:
        stale, old = self.store, self.token
        self.restart()
        with pytest.raises(StaleAttemptError):
            saved(stale, self.step + 5, old, self.head, pieces)
        self.look_again()

    def look_again(self) -> None:
        """A save writes those of its chunks again that are missing or torn."""
        self.damaged = {path for path in self.damaged if not path.exists() or digest_of(path) not in path.name}

    @precondition(lambda self: self.head is not None)
    @rule(data=st.data(), what=st.sampled_from(["chunks/*/*", "m/*.json"]), cut=st.booleans())
    def damage(self, data: st.DataObject, what: str, cut: bool) -> None:
        files = [path for path in sorted(self.folder.glob(what)) if path.stat().st_size]
        if files:
            path = data.draw(st.sampled_from(files))
            content = bytearray(path.read_bytes())
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content[: bit // 8] if cut else content)
            self.damaged.add(path)

    @precondition(lambda self: self.head is not None)
    @rule(keep=st.booleans(), sweep=st.booleans())
    def collect(self, keep: bool, sweep: bool) -> None:
        """An hour is not over, so only what this attempt made itself goes."""
        chain = list(self.committed)
        kept = {self.head, chain[len(chain) // 2]} if keep else {self.head}
        try:
            self.store.collect([each for each in kept if each], sweep=sweep)
        except CorruptCheckpointError:
            assert self.damaged
            return
        self.collected |= {each for each in chain if self.committed[each][0].token == self.token} - kept
        self.look_again()

    def whole(self, manifest_id: str) -> bool:
        manifest, _ = self.committed[manifest_id]
        paths = {self.chunk(chunk.sha256) for chunk in manifest.chunks()}
        paths.add(self.folder / "m" / f"{manifest.step}-{manifest_id}.json")
        return manifest_id not in self.collected and not paths & self.damaged

    @invariant()
    def the_newest_whole_checkpoint_is_found(self) -> None:
        if not hasattr(self, "folder"):
            return
        chain, following = [], self.head
        while following is not None:
            chain.append(following)
            following = self.committed[following][0].parent
        expected = next((each for each in chain if self.whole(each)), None)
        assert (self.store.head().manifest if self.head else self.store.head()) == self.head  # type: ignore[union-attr]
        try:
            found = resolve(LocalStore(self.folder))
        except CorruptCheckpointError:
            assert chain
            assert expected is None
            return
        assert (found.id if found else None) == expected
        if found is not None:
            assert contents(self.store, found) == self.committed[found.id][1]


Attempts.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestAttempts = Attempts.TestCase
