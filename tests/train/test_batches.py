"""Batches with a place: every sample exactly once per epoch, whatever is killed and changed in between."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorry
from lorry.errors import ExecutionError, InvalidError
from lorry.train.batches import AHEAD, Batches, Job
from lorry.train.data import Dataset


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("numbered")
    for name, first, stop in (("a", 0, 3), ("b", 3, 1500), ("c", 1500, 2000)):
        (folder / f"{name}.txt").write_text("".join(f"{number}\n" for number in range(first, stop)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        return lorry.data.text(folder)


def checkpoint(data: Batches) -> Any:
    return json.loads(json.dumps(data.state_dict()))


def after(data: Batches, state: Any) -> Batches:
    data.load_state_dict(state)
    return data


# --- the order --------------------------------------------------------------------------------------------


@given(
    size=st.integers(0, 300) | st.just(3 * AHEAD + 5),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
    attempts=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 12))),
)
def test_every_sample_comes_once_per_epoch_whatever_is_killed(
    size: int, epochs: int, seed: int, shuffle: bool, attempts: list[tuple[int, int]]
) -> None:
    """An attempt works off some batches of its own size, then is killed somewhere in the next."""

    def data(batch: int) -> Batches:
        return Batches(range(size), batch=batch, epochs=epochs, seed=seed, shuffle=shuffle)

    whole = list(itertools.chain(*data(7)))
    seen: list[int] = []
    state = checkpoint(data(1))
    for batch, lives in [*attempts, (13, sys.maxsize)]:
        loop = after(data(batch), state)
        committed = state
        for samples in loop:
            if not lives:
                break  # killed: what was handed out last is not in any checkpoint
            lives -= 1
            seen += samples
            committed = checkpoint(loop)
        state = committed
    assert seen == whole
    for epoch in range(epochs):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


def through_workers(data: Batches, prefetched: int) -> Iterator[list[Any]]:
    """What a Loader does, without processes: so many batches are made before the loop gets the first of them."""
    jobs, waiting = data.jobs(), deque[Job]()

    def made() -> Iterator[tuple[Job, Any]]:
        waiting.extend(itertools.islice(jobs, prefetched))
        while waiting:
            job = waiting.popleft()
            yield job, data.make(job)
            waiting.extend(itertools.islice(jobs, 1))

    return data.hand_out(made())


@given(
    windows=st.sampled_from([1, 2, 7]),
    epochs=st.integers(1, 2),
    seed=st.integers(0, 5),
    attempts=st.lists(
        st.tuples(st.integers(1, 400), st.integers(0, 12), st.sampled_from([0, 1, 6]), st.integers(1, 5)), max_size=20
    ),
)
def test_lines_come_once_per_epoch_whatever_is_killed(
    numbered: Dataset, windows: int, epochs: int, seed: int, attempts: list[tuple[int, int, int, int]]
) -> None:
    """An attempt has a batch size, batches it lives for, batches that its workers prefetch, and steps between saves;
    whoever is killed takes with it what was done since the last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorry.train.lines.WINDOW", -(-sum(file.size for file in numbered.files) // windows))
        assert numbered.windows == windows

        def data(batch: int) -> Batches:
            return numbered.batches(batch=batch, epochs=epochs, seed=seed)

        whole = list(itertools.chain(*data(7)))
        committed, kept = checkpoint(data(1)), 0
        seen: list[str] = []
        for batch, lives, prefetched, every in [*attempts, (13, sys.maxsize, 2, 1)]:
            loop, seen = after(data(batch), committed), seen[:kept]
            for step, samples in enumerate(through_workers(loop, prefetched) if prefetched else loop, 1):
                seen += samples
                if step % every == 0:
                    committed, kept = checkpoint(loop), len(seen)
                if step > lives:
                    break
    assert seen == whole
    for epoch in range(epochs):
        assert sorted(whole[epoch * 2000 : (epoch + 1) * 2000]) == sorted(map(str, range(2000)))


def test_each_epoch_has_another_order_and_each_seed_too() -> None:
    whole = list(itertools.chain(*Batches(range(100), epochs=2)))
    first, second = whole[:100], whole[100:]
    assert first != second
    assert list(itertools.chain(*Batches(range(100), seed=1))) not in (first, second)


def test_without_numpy_the_order_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with_numpy = list(Batches(range(5000), epochs=2))
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert list(Batches(range(5000), epochs=2)) == with_numpy


def test_without_shuffle_samples_come_as_they_are() -> None:
    assert list(Batches(range(5), batch=2, shuffle=False)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("size", "drop_last", "batches"), [(10, False, 8), (10, True, 6), (9, True, 6), (2, True, 0)])
def test_the_length_is_that_of_all_epochs(size: int, drop_last: bool, batches: int) -> None:
    data = Batches(range(size), batch=3, epochs=2, drop_last=drop_last)
    found = list(data)
    assert len(data) == len(found) == batches
    assert not drop_last or all(len(batch) == 3 for batch in found)


def test_the_epoch_is_that_of_the_batch_that_is_worked_on() -> None:
    data = Batches(range(4), batch=2, epochs=2)
    assert [data.epoch for _ in data] == [0, 0, 1, 1]


# --- the place --------------------------------------------------------------------------------------------


def test_a_checkpoint_in_the_loop_counts_the_batch_that_is_worked_on() -> None:
    data = Batches(range(10), batch=2)
    loop = iter(data)
    assert data.state_dict()["sample"] == 0
    first = next(loop)
    state = checkpoint(data)
    assert state["sample"] == 2
    assert next(iter(after(Batches(range(10), batch=2), state))) == next(loop) != first


def test_after_the_last_epoch_nothing_comes_and_more_epochs_go_on() -> None:
    data = Batches(range(10))
    first = list(data)
    assert list(data) == []
    assert list(after(Batches(range(10)), checkpoint(data))) == []
    assert [*first, *after(Batches(range(10), epochs=2), checkpoint(data))] == list(Batches(range(10), epochs=2))


def test_a_second_loop_goes_on_behind_the_first() -> None:
    data = Batches(range(10), batch=2)
    first = list(itertools.islice(data, 2))
    assert first + list(data) == list(Batches(range(10), batch=2))


def test_a_loop_whose_place_was_moved_says_so() -> None:
    data = Batches(range(10), batch=2)
    loop = iter(data)
    next(loop)
    data.load_state_dict(data.state_dict())
    with pytest.raises(ExecutionError, match="restore"):
        next(loop)


def test_resume_at_the_end_of_ten_million_samples_computes_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Batches(range(10_000_000))
    state = {**checkpoint(data), "sample": 9_999_990}
    asked = []

    def block(permutation: object, start: int, stop: int) -> list[int]:
        asked.append(stop - start)
        return list(range(start, stop))

    monkeypatch.setattr("lorry.train.order.Permutation.block", block)
    assert [len(batch) for batch in after(data, state)] == [10]
    assert sum(asked) == 10


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"on_change": "ignore"}])
def test_options_that_cannot_work_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=next(iter(wrong))):
        Batches(range(10), **wrong)


# --- a source that changed --------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{line}\n" for line in range(10)))
    return tmp_path


def at_sample_8(corpus: Path, **options: Any) -> Any:
    data = lorry.data.text(corpus).batches(batch=8, **options)
    next(iter(data))
    return checkpoint(data)


def test_a_copy_elsewhere_with_other_times_is_the_same_source(corpus: Path, tmp_path: Path) -> None:
    state = at_sample_8(corpus)
    other = tmp_path / "other"
    other.mkdir()
    for name in "abc":
        (other / f"{name}.txt").write_bytes((corpus / f"{name}.txt").read_bytes())
    data = after(lorry.data.text(other).batches(batch=8), state)
    assert checkpoint(data) == state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "b.txt").unlink(), "samples was 30, is 20; b.txt is gone"),
        (lambda path: (path / "d.txt").write_text("d\n"), "samples was 30, is 31; d.txt is new"),
        (lambda path: (path / "a.txt").write_text("a\n"), "a.txt had 30 bytes in 10 lines, has 2 in 1"),
        (lambda path: (path / "a.txt").write_text("x" + (path / "a.txt").read_text()[1:]), "a.txt has other content"),
    ],
)
def test_a_change_is_an_error_that_says_what_and_what_to_do(corpus: Path, change: Any, said: str) -> None:
    state = at_sample_8(corpus)
    change(corpus)
    data = lorry.data.text(corpus).batches(batch=8)
    with pytest.raises(InvalidError) as caught:
        data.load_state_dict(state)
    assert said in str(caught.value)
    assert 'on_change="restart_epoch"' in str(caught.value)
    assert 'on_change="continue"' in str(caught.value)
    assert data.state_dict()["sample"] == 0  # nothing was taken over


def test_the_epoch_begins_again_or_goes_on_as_chosen(corpus: Path) -> None:
    state = {**at_sample_8(corpus), "epoch": 1}
    (corpus / "d.txt").write_text("d\n" * 10)
    source = lorry.data.text(corpus)
    whole = list(itertools.chain(*source.batches(epochs=2)))
    for choice, left in (("restart_epoch", whole[40:]), ("continue", whole[48:])):
        data = after(source.batches(epochs=2, on_change=choice), state)
        assert list(itertools.chain(*data)) == left


def test_another_seed_or_shuffle_is_a_change_too(corpus: Path) -> None:
    state = at_sample_8(corpus)
    with pytest.raises(InvalidError, match="seed was 0, is 1"):
        lorry.data.text(corpus).batches(seed=1).load_state_dict(state)
    with pytest.raises(InvalidError, match="shuffle was True, is False"):
        lorry.data.text(corpus).batches(shuffle=False).load_state_dict(state)


def test_of_many_files_a_checkpoint_keeps_one_record(tmp_path: Path) -> None:
    for number in range(101):
        (tmp_path / f"{number}.txt").write_text("x\n")
    state = at_sample_8(tmp_path)
    assert [file[:3] for file in state["of"]["files"]] == [["101 files", 202, 101]]
    (tmp_path / "5.txt").write_text("y\n")
    with pytest.raises(InvalidError, match="101 files has other content"):
        lorry.data.text(tmp_path).batches().load_state_dict(state)


# --- map, collate and randomness --------------------------------------------------------------------------


def test_map_makes_samples_and_collate_makes_the_batch() -> None:
    data = Batches(range(4), batch=2, shuffle=False, map=lambda x: x * 10, collate=tuple)
    assert list(data) == [(0, 10), (20, 30)]
    assert list(Batches(["1", "2"], shuffle=False, map=int)) == [[1, 2]]


def test_rng_depends_on_the_sample_alone() -> None:
    def noisy(sample: int, rng: random.Random) -> tuple[int, float]:
        return sample, rng.random()

    small = list(itertools.chain(*Batches(range(50), batch=3, epochs=2, map=noisy)))
    large = list(itertools.chain(*Batches(range(50), batch=20, epochs=2, map=noisy)))
    assert small == large
    assert max(Counter(noise for _, noise in small).values()) == 1


def test_global_generators_in_collate_depend_on_the_place_and_disturb_nothing() -> None:
    import numpy

    def noisy(samples: list[int]) -> tuple[float, float]:
        return random.random(), float(numpy.random.rand())

    def data() -> Batches:
        return Batches(range(50), batch=10, collate=noisy)

    random.seed(1)
    numpy.random.seed(1)
    undisturbed = random.random(), float(numpy.random.rand())
    random.seed(1)
    numpy.random.seed(1)
    loop = data()
    first = list(itertools.islice(loop, 2))
    assert (random.random(), float(numpy.random.rand())) == undisturbed
    assert first + list(after(data(), checkpoint(loop))) == list(data())
    assert len({*first, *data()}) == 5
