"""A training loader whose n-th batch depends only on (seed, n).

A resumed run therefore sees what the uninterrupted run would have seen, with any number of workers.
Detectron2's own loader restarts its shuffle and its random numbers.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset


def stream_seed(*parts: int) -> int:
    """A 32-bit seed that mixes its parts; neighbors give unrelated streams."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that Detectron2's augmentations draw from, then restore them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def sample_order(size: int, seed: int, start: int = 0) -> Iterator[int]:
    """An endless order of ``size`` samples, reshuffled every epoch, from position ``start`` on."""
    epoch, offset = divmod(start, size)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(size)
        yield from (int(i) for i in order[offset:])
        epoch, offset = epoch + 1, 0


class _Draws(Dataset):
    """Maps (index, position in the endless order) to a sample augmented with its own seed."""

    def __init__(self, dicts: DatasetFromList, mapper: Callable[[dict], dict], seed: int):
        self.dicts = dicts
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, draw: tuple[int, int]) -> dict:
        index, position = draw
        with seeded(stream_seed(self.seed, position)):
            return self.mapper(self.dicts[index])


class TrainLoader:
    """An endless iterable of batches (lists of dicts).

    Set ``start_iter`` before the first batch is drawn. Iteration begins lazily, because the trainer
    of Detectron2 requests the iterator before it loads a checkpoint.
    """

    def __init__(
        self,
        dicts: list[dict],
        mapper: Callable[[dict], dict],
        *,
        batch_size: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
            dicts: Detectron2 dataset dicts.
            mapper: dict -> model input.
            batch_size: of this process.
            num_workers: loader processes.
            rank, world_size: of this process; the processes share one order of samples.
        """
        if not dicts:
            raise ValueError("the training set is empty")
        # As bytes: forked workers that count references to dicts would copy the memory of all.
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.start_iter = 0
        self.seed = 0

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        total = self.batch_size * self.world_size
        position = self.start_iter * total
        order = sample_order(len(self.dicts), self.seed, position)
        while True:
            batch = [(next(order), position + i) for i in range(total)]
            yield batch[self.rank :: self.world_size]
            position += total

    def __iter__(self) -> Iterator[list[dict]]:
        yield from DataLoader(
            _Draws(self.dicts, self.mapper, self.seed),
            batch_sampler=self._batches(),
            num_workers=self.num_workers,
            collate_fn=list,
            pin_memory=False,
            # Otherwise the seeds of the workers are drawn from the run's random numbers.
            generator=torch.Generator(),
        )
