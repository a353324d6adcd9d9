"""The training loader: batch n is a function of (seed, n) and of nothing else."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet.data.train_loader import TrainLoader, sample_order, seeded, stream_seed

DICTS = [{"id": i} for i in range(7)]


def draw(sample: dict) -> dict:
    """A mapper that shows every random source an augmentation may use."""
    return {
        "id": sample["id"],
        "numpy": np.random.random(),
        "python": random.random(),
        "noise": torch.from_numpy(np.random.randint(0, 256, (3, 4))),
    }


def loader(start: int = 0, seed: int = 5, **options) -> TrainLoader:
    options = {"batch_size": 3, "num_workers": 0} | options
    made = TrainLoader(DICTS, draw, **options)
    made.start_iter, made.seed = start, seed
    return made


def batches(made: TrainLoader, count: int) -> list[list[tuple]]:
    iterator = iter(made)
    taken = list(itertools.islice(iterator, count))
    iterator.close()  # ends the workers
    return [
        [(x["id"], x["numpy"], x["python"], x["noise"].tolist()) for x in batch] for batch in taken
    ]


# ---------------------------------------------------------------- the order of samples


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_every_epoch_is_a_permutation(size, seed, epochs):
    order = list(itertools.islice(sample_order(size, seed), size * epochs))
    for epoch in range(epochs):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_order_resumes_at_any_position(size, seed, start):
    whole = list(itertools.islice(sample_order(size, seed), start + 40))
    assert list(itertools.islice(sample_order(size, seed, start), 40)) == whole[start:]


def test_epochs_and_seeds_differ():
    # 20! orders: two equal ones would be no accident.
    order = list(itertools.islice(sample_order(20, 0), 40))
    assert order[:20] != order[20:]
    assert order[:20] != list(itertools.islice(sample_order(20, 1), 20))


def test_stream_seeds_of_neighbors_differ_and_depend_on_the_order_of_parts():
    assert len({stream_seed(a, b) for a in range(30) for b in range(30)}) == 900
    assert stream_seed(1, 2) == stream_seed(1, 2) != stream_seed(2, 1)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 5])
def test_start_iter_equals_skipping(workers, start):
    # 3 a batch out of 7: batches cross the epochs, so a lost remainder would show.
    whole = batches(loader(), 8)
    assert batches(loader(start, num_workers=workers), 8 - start) == whole[start:]


def test_number_of_workers_does_not_matter():
    assert batches(loader(), 6) == batches(loader(num_workers=2), 6)


def test_order_of_draws_does_not_matter_to_a_sample():
    # The same image in two epochs is augmented differently, whatever else was drawn before.
    drawn = [x for batch in batches(loader(), 14) for x in batch]
    by_id = {}
    for x in drawn:
        by_id.setdefault(x[0], set()).add(x[1])
    assert all(len(values) == 6 for values in by_id.values())  # 14 * 3 / 7 epochs


def test_a_mapper_may_change_its_dict():
    def mark(sample):
        assert "seen" not in sample  # although every image comes three times
        sample["seen"] = True
        return sample

    made = TrainLoader(DICTS, mark, batch_size=7, num_workers=0)
    assert len(list(itertools.islice(made, 3))) == 3
    assert all(sample.keys() == {"id"} for sample in DICTS)


def test_seed_matters():
    assert batches(loader(), 2) != batches(loader(seed=6), 2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_partition_the_batches_of_one_process(world_size):
    # 6 images an iteration however they are spread: the ranks' shares together are that batch.
    whole = batches(loader(2, batch_size=6), 4)
    ranks = [
        batches(loader(2, batch_size=6 // world_size, rank=r, world_size=world_size), 4)
        for r in range(world_size)
    ]
    for n in range(4):
        shares = [rank[n] for rank in ranks]
        assert all(len(share) == 6 // world_size for share in shares)
        assert sorted(x for share in shares for x in share) == sorted(whole[n])


def test_iteration_begins_lazily():
    # Detectron2's trainer asks for the iterator before it loads the checkpoint.
    made = loader()
    iterator = iter(made)
    made.start_iter, made.seed = 3, 9
    first = next(iterator)
    assert [x["id"] for x in first] == [x[0] for x in batches(loader(3, 9), 1)[0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_untouched(workers):
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    batches(loader(num_workers=workers), 3)
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert before == after


def test_global_random_state_has_no_influence():
    np.random.seed(1)
    one = batches(loader(), 2)
    np.random.seed(2)
    random.seed(2)
    torch.manual_seed(2)
    assert batches(loader(), 2) == one


def test_seeded_restores_after_an_error():
    np.random.seed(1)
    state = np.random.get_state()[1].tolist(), random.getstate()

    def fail():
        with seeded(3):
            np.random.random()
            random.random()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (np.random.get_state()[1].tolist(), random.getstate()) == state


def test_empty_set_is_refused():
    with pytest.raises(ValueError, match="training set is empty"):
        TrainLoader([], draw, batch_size=1, num_workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_mapper_reaches_the_caller(workers):
    def fail(sample):
        raise ValueError("street.png: not a readable image")

    made = TrainLoader(DICTS, fail, batch_size=1, num_workers=workers)
    with pytest.raises(ValueError, match=r"street\.png"):
        next(iter(made))
