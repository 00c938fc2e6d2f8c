"""The batches of `Batches`, made by the worker processes of torch's DataLoader.

Workers prefetch, and the number of them may change between attempts: neither shows, because a job says all that a
batch depends on, and the place moves when the loop gets the batch.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lorry.errors import InvalidError

if TYPE_CHECKING:
    from lorry.train.batches import Batches, Job, Making


class Loader:
    """Iterate over it as over the `Batches` that it belongs to."""

    def __init__(self, batches: Batches, num_workers: int, options: Mapping[str, Any]) -> None:
        if not options.get("in_order", True):
            raise InvalidError("in_order=False would lose the place in the data: leave it out")
        self._batches, self._num_workers, self._options = batches, num_workers, dict(options)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        torch: Any = importlib.import_module("torch")
        data: Any = importlib.import_module("torch.utils.data")
        waiting: deque[Job] = deque()
        loader = data.DataLoader(
            _Made(self._batches.make),
            sampler=_Noted(self._batches, waiting),
            batch_size=None,  # a job is a batch already
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            generator=torch.Generator(),  # or the start of workers would draw from the program's
            **self._options,
        )
        return self._batches.hand_out((waiting.popleft(), batch) for batch in loader)


class _Made:
    """The dataset, as torch sees it: job → batch."""

    def __init__(self, make: Making) -> None:
        self._make = make

    def __getitem__(self, job: Job) -> Any:
        return self._make(job)


class _Noted:
    """The sampler: every job goes to torch, and waits here until its batch comes out, in the same order."""

    def __init__(self, batches: Batches, waiting: deque[Job]) -> None:
        self._batches, self._waiting = batches, waiting

    def __iter__(self) -> Iterator[Job]:
        for job in self._batches.jobs():
            self._waiting.append(job)
            yield job


def _as_it_is(batch: Any) -> Any:
    return batch
