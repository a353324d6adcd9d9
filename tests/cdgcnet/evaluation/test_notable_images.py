"""Which images are drawn, and that their label maps are kept instead of predicted again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet.evaluation.image_result import ImageRecord, count_image, image_scores
from cdgcnet.evaluation.notable_images import NotableImages, choose_images, decode, encode
from cdgcnet.modeling.predictions import PredictionKind

NAMES = ["a", "b", "c"]


def image(index: int, seed: int) -> tuple[ImageRecord, dict[PredictionKind, np.ndarray]]:
    """A record of 4 x 4 pixels; equal seeds give equal scores."""
    rng = np.random.default_rng(seed)
    truth, coarse, refined = rng.integers(0, 3, (3, 4, 4), dtype=np.uint8)
    labels = {PredictionKind.REFINED: refined, PredictionKind.COARSE: coarse}
    counts = count_image(truth, labels, 3, 255, 0.0)
    return ImageRecord(f"{index:03}.png", counts), labels


def test_chosen_images_are_named_once_with_all_reasons():
    nan = float("nan")
    scores = {
        "a": {"mIoU": 90.0, "fixed": 7, "broken": 0},
        "b": {"mIoU": 10.0, "fixed": 0, "broken": 5},
        "c": {"mIoU": nan, "fixed": 0, "broken": 0},  # nothing labeled
        "d": {"mIoU": 20.0, "fixed": 3, "broken": 1},
    }
    assert choose_images(scores, 2) == {
        "b": "worst 1: mIoU 10.0; most broken 1: 5 pixels",
        "d": "worst 2: mIoU 20.0; most fixed 2: 3 pixels; most broken 2: 1 pixels",
        "a": "most fixed 1: 7 pixels",
    }
    assert choose_images(scores, 0) == {}


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=12),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_however_images_are_divided_every_chosen_one_has_its_label_maps(images, count, random):
    # Few seeds, so that many images have the same scores; three processes, any order.
    processes = [NotableImages(NAMES, count) for _ in range(3)]
    everything = [(process, *image(i, seed)) for i, (process, seed) in enumerate(images)]
    random.shuffle(everything)
    for process, record, labels in everything:
        processes[process].add(record, labels)
    scores = {r.file_name: image_scores(r, NAMES) for _, r, _ in everything}
    chosen = choose_images(scores, count)
    for _, record, labels in everything:
        if record.file_name in chosen:
            assert record.label_maps.keys() == {"refined", "coarse"}
            for kind, expected in labels.items():
                np.testing.assert_array_equal(decode(record.label_maps[kind.value]), expected)
    # Memory is bounded: three rankings of each of the three processes.
    assert sum(bool(r.label_maps) for _, r, _ in everything) <= 3 * 3 * count


@given(st.lists(st.integers(0, 5), max_size=10), st.integers(0, 10))
def test_an_interruption_loses_no_label_map(seeds, stop):
    images = [image(i, seed) for i, seed in enumerate(seeds)]
    first = NotableImages(NAMES, 2)
    lines = []
    for record, labels in images[:stop]:
        first.add(record, labels)
        lines.append(record.to_json())  # as the partial results keep it
    second = NotableImages(NAMES, 2)
    records = [ImageRecord.from_json(line) for line in lines]
    for record in records:
        second.add(record)
    for record, labels in images[stop:]:
        second.add(record, labels)
        records.append(record)
    chosen = choose_images({r.file_name: image_scores(r, NAMES) for r in records}, 2)
    assert {r.file_name for r in records if r.label_maps} >= chosen.keys()


def test_a_label_map_survives_its_compression():
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(decode(encode(labels)), labels)


def test_images_without_ground_truth_are_not_kept():
    notable = NotableImages(NAMES, 2)
    record = ImageRecord("a.png")
    notable.add(record, {PredictionKind.REFINED: np.zeros((4, 4), np.uint8)})
    assert record.label_maps == {}
