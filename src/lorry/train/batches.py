"""Batches in a shuffled order with a place in it: (epoch, sample), which a checkpoint keeps.

Every sample is handed out exactly once per epoch, whatever happens to the process, and whatever batch size or number
of workers the next attempt has: the order is computed from (seed, epoch), so the place in it is all there is to keep.
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lorry.errors import ExecutionError, InvalidError
from lorry.train.ahead import Ahead
from lorry.train.lines import FileRecord, Lines
from lorry.train.order import Order
from lorry.train.seeding import generators_at, number

if TYPE_CHECKING:
    from lorry.train.loader import Loader

AHEAD = 1024
"""Samples whose order is computed together."""
MANY_FILES = 100
"""From here on a checkpoint keeps one record for all."""

OnChange = Literal["error", "restart_epoch", "continue"]


class Job(NamedTuple):
    """What one batch is made of: its samples, and where in the epoch's order the first of them stands."""

    epoch: int
    place: int
    samples: list[int]


class Batches:
    """Iterate over it once for all epochs: `for batch in data: …; run.step()`.

    `source` has `len` and `[i]`. `batch`: samples each; the last of an epoch is smaller, or left out with `drop_last`.
    `map` makes a sample from what the source holds; if it has a parameter `rng`, that is a `random.Random` which
    depends on (seed, epoch, sample) alone. `collate` makes the batch from the list of samples. In both, and in `[i]`,
    the global generators of Python, NumPy and torch depend on (seed, epoch, place) alone, and what they draw does not
    disturb the program's own. `on_change`: what happens when the source is not what it was at the checkpoint.

    The contract with a checkpoint: `state_dict()` counts every batch that was handed out, and is asked for at a safe
    point (`run.step()`), when the loop body has done its work on the last of them. A batch is made when the loop asks
    for it, after the safe point, or, with workers, without touching the place. So no batch is lost and none is seen
    twice. A batch that was handed out is not handed out again: a second loop goes on behind the first.
    """

    def __init__(
        self,
        source: Any,
        *,
        batch: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        epochs: int = 1,
        drop_last: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
        map: Callable[..., Any] | None = None,
        on_change: OnChange = "error",
    ) -> None:
        if batch < 1:
            raise InvalidError(f"batch={batch} must be at least 1")
        if on_change not in ("error", "restart_epoch", "continue"):
            raise InvalidError(f'on_change={on_change!r} must be "error", "restart_epoch" or "continue"')
        self.source, self.batch, self.epochs = source, batch, epochs
        self.make = Making(source, seed, map, collate)
        self._shuffle, self._seed, self._drop_last, self._on_change = shuffle, seed, drop_last, on_change
        self._epoch = self._place = 0
        self._loop = object()

    def __len__(self) -> int:
        """Batches of all epochs, from the very beginning: what a learning rate's schedule needs."""
        whole, rest = divmod(len(self.source), self.batch)
        return self.epochs * (whole + (rest > 0 and not self._drop_last))

    @property
    def epoch(self) -> int:
        """Of the batch handed out last; the first is 0."""
        return self._epoch

    def __iter__(self) -> Iterator[Any]:
        return self.hand_out((job, self.make(job)) for job in self.jobs())

    def loader(self, num_workers: int, **options: Any) -> Loader:
        """The same batches in the same order, made by torch's DataLoader in processes of their own. Iterate over it
        and keep tracking `self`. Options are those of DataLoader that do not choose samples, such as `pin_memory`,
        `prefetch_factor`, `multiprocessing_context`."""
        from lorry.train.loader import Loader

        return Loader(self, num_workers, options)

    # --- the order --------------------------------------------------------------------------------------------

    def jobs(self) -> Iterator[Job]:
        """All batches from the present place on. Meanwhile a thread fetches what the batches to come are made of."""
        epoch, place, total = self._epoch, self._place, len(self.source)
        ahead = Ahead(self.source.fetch) if isinstance(self.source, Lines) else None
        try:
            while epoch < self.epochs and total:
                for samples in self._order(epoch, place, total, ahead):
                    if len(samples) == self.batch or not self._drop_last:
                        yield Job(epoch, place, samples)
                    place += len(samples)
                epoch, place = epoch + 1, 0
        finally:
            if ahead:
                ahead.end()

    def _order(self, epoch: int, place: int, total: int, ahead: Ahead | None) -> Iterator[list[int]]:
        """The samples of one epoch from a place on, by batches."""
        windows = self.source.windows if isinstance(self.source, Lines) else 1
        order = Order(total, windows, self._seed, epoch, self._shuffle)
        step = self.batch * max(1, AHEAD // self.batch)
        for start in range(place, total, step):
            stop = min(start + step, total)
            if ahead:
                ahead.ask(order.coming(start, stop, first=start == place))
            block = order.block(start, stop)
            for at in range(0, len(block), self.batch):
                yield block[at : at + self.batch]

    def hand_out(self, made: Iterable[tuple[Job, Any]]) -> Iterator[Any]:
        """The batches of one loop. ExecutionError: the place was moved by something else meanwhile."""
        loop = self._loop = object()
        for job, batch in made:
            if self._loop is not loop:
                raise ExecutionError("Another loop over this data, or a restore, has begun since this loop did")
            self._epoch, self._place = job.epoch, job.place + len(job.samples)
            yield batch

    # --- the place --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"epoch": self._epoch, "sample": self._place, "of": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """InvalidError: the data is not what it was, and `on_change` was not given."""
        changes = self._changes(state["of"])
        if changes and self._on_change == "error":
            raise InvalidError(
                f"The data changed since the checkpoint at epoch {state['epoch']}, sample {state['sample']:,}: "
                f'{"; ".join(changes)}. Put it back, or say what to do: on_change="restart_epoch" begins this epoch '
                'again with the data as it is now; on_change="continue" goes on at the same place of the new order, '
                "where samples may come twice or not at all until the epoch ends"
            )
        self._epoch = state["epoch"]
        self._place = 0 if changes and self._on_change == "restart_epoch" else state["sample"]
        self._loop = object()

    def _identity(self) -> dict[str, Any]:
        order = {"samples": len(self.source), "shuffle": self._shuffle, "seed": self._seed}
        return {**order, "files": [list(file) for file in _records(self.source)]}

    def _changes(self, before: dict[str, Any]) -> list[str]:
        now = self._identity()
        names = [name for name in ("shuffle", "seed", "samples") if before[name] != now[name]]
        changes = [f"{name} was {before[name]}, is {now[name]}" for name in names]
        old, new = ({file[0]: file[1:] for file in identity["files"]} for identity in (before, now))
        changes += [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
        changes += [f"{name} is new" for name in sorted(new.keys() - old.keys())]
        for name in sorted(old.keys() & new.keys()):
            (size, lines, content), (new_size, new_lines, new_content) = old[name], new[name]
            if content != new_content:
                sizes = f"had {size:,} bytes in {lines:,} lines, has {new_size:,} in {new_lines:,}"
                changes.append(f"{name} {sizes if size != new_size else 'has other content'}")
        return changes


class Making:
    """Job → batch. It can be sent to another process."""

    def __init__(
        self,
        source: Any,
        seed: int,
        map: Callable[..., Any] | None,
        collate: Callable[[list[Any]], Any] | None,
    ) -> None:
        self._source, self._seed, self._map, self._collate = source, seed, map, collate
        self._with_rng = map is not None and _has_rng(map)
        self._draws_nothing = map is None and collate is None and isinstance(source, (Lines, list, tuple, range))

    def __call__(self, job: Job) -> Any:
        if self._draws_nothing:
            return self._read(job.samples)
        with generators_at(number("batch", self._seed, job.epoch, job.place)):
            samples = self._read(job.samples)
            if self._map is not None:
                samples = [self._mapped(job.epoch, *pair) for pair in zip(job.samples, samples, strict=True)]
            return self._collate(samples) if self._collate is not None else samples

    def _read(self, samples: list[int]) -> Any:
        many = getattr(self._source, "__getitems__", None)
        return many(samples) if many else [self._source[sample] for sample in samples]

    def _mapped(self, epoch: int, sample: int, value: Any) -> Any:
        assert self._map is not None
        if not self._with_rng:
            return self._map(value)
        return self._map(value, rng=random.Random(number("sample", self._seed, epoch, sample)))  # noqa: S311


def _has_rng(function: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(function).parameters
    except ValueError:  # a builtin that does not tell
        return False


def _records(source: Any) -> list[FileRecord]:
    """What a checkpoint keeps of the files of a source; of other sources only their length is known."""
    if not isinstance(source, Lines):
        return []
    if len(source.files) <= MANY_FILES:
        return list(source.files)
    content = hashlib.sha256(repr([tuple(file) for file in source.files]).encode()).hexdigest()
    size, lines = sum(file.size for file in source.files), sum(file.lines for file in source.files)
    return [FileRecord(f"{len(source.files):,} files", size, lines, content)]
