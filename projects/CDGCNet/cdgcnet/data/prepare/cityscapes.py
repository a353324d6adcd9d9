"""Cityscapes: images, fine labels with train ids, and the coarsely labeled train_extra."""

from functools import partial
from itertools import chain
from pathlib import Path

from cdgcnet.data.datasets.cityscapes_labels import make_train_ids
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.data.prepare.archives import Content, File, Sources
from cdgcnet.data.prepare.completeness import Split
from cdgcnet.data.prepare.conversion import Job, Runner
from cdgcnet.data.prepare.label_formats import require_size

FOLDER = "cityscapes"
OFFICIAL = (
    "leftImg8bit_trainvaltest.zip",
    "gtFine_trainvaltest.zip",
    "leftImg8bit_trainextra.zip",
    "gtCoarse.zip",
)
LOOKED_FOR = """  leftImg8bit_trainvaltest.zip, or folders
    leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png
  gtFine_trainvaltest.zip, or folders
    gtFine/{train,val}/CITY/*_gtFine_labelIds.png (or *_polygons.json)
  leftImg8bit_trainextra.zip and gtCoarse.zip (optional)"""

_PLACE = r"(?P<city>[^/]+)/(?P<frame>[^/]+)"
_IMAGE = rf"(?P<path>leftImg8bit/(?P<split>train|val|test|train_extra)/{_PLACE}_leftImg8bit\.png)"
_FINE = rf"(?P<path>gtFine/(?P<split>train|val)/{_PLACE}_gtFine_"
_COARSE = rf"(?P<path>gtCoarse/(?P<split>train_extra)/{_PLACE}_gtCoarse_"
_LABELS = (
    rf"{_FINE}(?:labelIds\.png|instanceIds\.png|polygons\.json))",
    rf"{_COARSE}(?:labelIds\.png|polygons\.json))",
)
# These are not in the official archives, but whoever made them may have kept nothing else.
_TRAIN_IDS = (rf"{_FINE}labelTrainIds\.png)", rf"{_COARSE}labelTrainIds\.png)")
WANTED = (_IMAGE, *_LABELS, *_TRAIN_IDS)

# Images of each city, so that messages can say where some are missing.
CITIES = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85,
        "dusseldorf": 221, "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119,
        "krefeld": 99, "monchengladbach": 94, "strasbourg": 365, "stuttgart": 196, "tubingen": 144,
        "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {
        "berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398,
    },
}  # fmt: skip
COUNTS = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}
_KINDS = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}


def prepare(sources: Sources, root: Path, runner: Runner) -> list[Split]:
    """Make ``root/cityscapes``.

    Raises:
        ValueError: if there are no images, or no labels.
    """
    folder = root / FOLDER
    images = sources.first(_IMAGE, "path")
    if not images:
        raise sources.nothing("Cityscapes' images", LOOKED_FOR)
    runner.run([Job(file, folder / path) for path, file in images.items()], "images")
    labels: dict[str, File] = {}
    for match, file in chain.from_iterable(map(sources.matching, _LABELS)):
        place = f"{match['split']}/{match['city']}/{match['frame']}"
        if (folder / "leftImg8bit" / f"{place}_leftImg8bit.png").is_file():
            labels.setdefault(match["path"], file)
    made = sources.first(_TRAIN_IDS[0], "path") | sources.first(_TRAIN_IDS[1], "path")
    if not labels and not made:
        raise sources.nothing("labels for Cityscapes' images", LOOKED_FOR)
    runner.run([Job(file, folder / path) for path, file in labels.items()], "official labels")

    jobs = []
    splits = []
    for split in COUNTS:
        frames = sorted((folder / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        pairs: list[tuple[Path, Path | None]] = []
        for image in frames:
            target = label_path(folder, split, image) if split in _KINDS else None
            pairs.append((image, target))
            if target is not None:
                jobs += _label_job(image, target, made.get(target.relative_to(folder).as_posix()))
        splits.append(_split(split, pairs))
    runner.run(jobs, "train ids")
    return splits


def label_path(folder: Path, split: str, image: Path) -> Path:
    """Where the train ids of an image belong."""
    kind = _KINDS[split]
    frame = image.name.removesuffix("_leftImg8bit.png")
    return folder / kind / split / image.parent.name / f"{frame}_{kind}_labelTrainIds.png"


def convert(image: Path, content: Content, target: Path) -> None:
    """Make train ids from label ids or polygons, if the image is sound and has their size."""
    assert isinstance(content, Path)  # official labels are put in place first
    if content.suffix == ".png":
        require_size(read_labels(content), image)
    else:
        read_image(image)  # is it sound?
    make_train_ids(content, target)


def _label_job(image: Path, target: Path, made: File | None) -> list[Job]:
    """The job that makes the train ids from the best source there is; none without labels."""
    for ending in ("labelIds.png", "polygons.json"):
        source = target.with_name(target.name.replace("labelTrainIds.png", ending))
        if source.is_file():
            return [Job(File(str(source)), target, partial(convert, image))]
    return [Job(made, target)] if made else []


def _split(name: str, pairs: list[tuple[Path, Path | None]]) -> Split:
    counts: dict[str, int] = {}
    for image, _ in pairs:
        counts[image.parent.name] = counts.get(image.parent.name, 0) + 1
    hints = [
        f"{city} has {counts.get(city, 0)} images, officially {official}"
        for city, official in CITIES.get(name, {}).items()
        if counts.get(city, 0) != official
    ]
    return Split(name, COUNTS[name], pairs, optional=name in ("test", "train_extra"), hints=hints)
