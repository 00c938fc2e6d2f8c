"""Trainer's batches, as functions of their numbers: it makes them ahead of time, and perhaps in other processes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from lorry.errors import InvalidError
from lorry.train.batches import Job
from lorry.train.seeding import generators_at, number


def repeatable(trainer: Any, seed: int, make: Callable[[], Any]) -> Any:
    """In place of `trainer.get_train_dataloader`, which `make` is: the same samples in the same order, but what is
    drawn for a batch is a function of (seed, epoch, number of the batch). InvalidError: the data is a stream."""
    data: Any = importlib.import_module("torch.utils.data")
    loader = make()
    if isinstance(loader.dataset, data.IterableDataset) or loader.batch_sampler is None:
        raise InvalidError(
            "run.hugging_face needs data with a length and an order that can be computed, not an IterableDataset: a "
            "stream would have to be read again from its beginning, and its shuffle buffer is lost. Use a "
            "datasets.Dataset (without streaming=True), or anything else with __len__ and __getitem__"
        )
    alike = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    made = data.DataLoader(
        Made(loader.dataset, loader.collate_fn, seed),
        batch_sampler=Numbered(loader.batch_sampler, seed),
        collate_fn=_as_it_is,
        **{name: getattr(loader, name) for name in alike},
    )
    return trainer.accelerator.prepare_data_loader(made)


class Numbered:
    """A batch sampler that says of each batch where in which epoch it is, for whatever process makes it."""

    def __init__(self, batch_sampler: Any, seed: int) -> None:
        self._inner, self._seed, self._epoch = batch_sampler, seed, 0
        self.batch_size = getattr(batch_sampler, "batch_size", None)

    def __len__(self) -> int:
        return len(self._inner)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        for sampler in self._samplers():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    def _samplers(self) -> tuple[Any, Any]:
        return self._inner, getattr(self._inner, "sampler", None)

    def __iter__(self) -> Iterator[Job]:
        epoch, seed = self._epoch, number("order", self._seed, self._epoch, 0)
        for sampler in self._samplers():
            if hasattr(getattr(sampler, "generator", None), "manual_seed"):
                sampler.generator.manual_seed(seed)  # its state at the begin of a later epoch is in no checkpoint
        with generators_at(seed):
            order = list(self._inner)
        for place, samples in enumerate(order):
            yield Job(epoch, place, samples)


class Made:
    """The dataset, as torch sees it: job → batch."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self._dataset, self._collate, self._seed = dataset, collate, seed

    def __len__(self) -> int:
        return len(self._dataset)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)

    def __getitems__(self, job: Job) -> Any:
        many = getattr(self._dataset, "__getitems__", None)
        with generators_at(number("batch", self._seed, job.epoch, job.place)):
            return self._collate(many(job.samples) if many else [self._dataset[sample] for sample in job.samples])


def _as_it_is(batch: Any) -> Any:
    return batch
