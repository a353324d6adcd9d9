"""Finds the label of each image: by suffixes, in nested folders, or as a split file says.

Names are paths below the folder of the images or of the labels, with "/".
"""

import difflib
import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdgcnet.data.image_folder import files_in, images_in

_SHOWN = 3


def _folded(name: str) -> str:
    """A name without the differences that file systems and cameras make.

    macOS decomposes accents (NFD) where others do not (NFC); A.JPG and a.png are one picture.
    """
    return unicodedata.normalize("NFC", name).casefold()


def _common_start(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return a[:length] if length is not None else min(a, b, key=len)


def shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


@dataclass(frozen=True)
class PairingRule:
    """How images and labels of a dataset belong together.

    Attributes:
        images, labels: folders; labels is None for images without labels.
        image_suffix: the end of an image's name that does not belong to its stem, such as
            "_leftImg8bit.png"; "" stands for any image suffix.
        label_suffix: the end of a label's name, such as "_gtFine.png".
        recursive: search subfolders too; a label is in the subfolder of its image.
    """

    images: Path
    labels: Path | None
    image_suffix: str = ""
    label_suffix: str = ".png"
    recursive: bool = False

    def stem(self, image: str) -> str:
        """The part of an image's name that it shares with its label."""
        # A split file may pair images that do not end with the suffix.
        if self.image_suffix and image.lower().endswith(self.image_suffix.lower()):
            return image[: -len(self.image_suffix)]
        return str(Path(image).with_suffix("").as_posix())

    def image_names(self) -> list[str]:
        """Names of the images, sorted.

        Raises:
            ValueError: if there are none, or two of them would share a label.
        """
        names = [
            path.relative_to(self.images).as_posix()
            for path in images_in(self.images, self.recursive)
            if path.name.lower().endswith(self.image_suffix.lower())
        ]
        if self.labels == self.images:
            names = [n for n in names if not n.lower().endswith(self.label_suffix.lower())]
        if not names:
            raise ValueError(self._no_images())
        stems: dict[str, str] = {}
        for name in names:
            other = stems.setdefault(_folded(self.stem(name)), name)
            if other != name:
                raise ValueError(
                    f"{self.images} holds {other} and {name}: two images of one stem would share "
                    "their label; rename one"
                )
        return names

    def _no_images(self) -> str:
        what = f"no image that ends with {self.image_suffix!r}" if self.image_suffix else "no image"
        nested = [] if self.recursive else images_in(self.images, recursive=True)
        hint = ""
        if len(nested):
            here = nested[0].parent == self.images
            hint = (
                f"; there is {nested[0].name}, so check IMAGE_SUFFIX"
                if here
                else f"; {len(nested)} images are in subfolders, which RECURSIVE: True searches"
            )
        return f"{self.images} holds {what}{hint}"

    def label_names(self) -> list[str]:
        """Names of all label files."""
        assert self.labels is not None
        return [
            path.relative_to(self.labels).as_posix()
            for path in files_in(self.labels, self.recursive)
            if path.name.lower().endswith(self.label_suffix.lower())
        ]

    def find_labels(self, images: Sequence[str]) -> dict[str, str | None]:
        """The label of each image, or None.

        A label of exactly the expected name comes first. Otherwise letter case and Unicode form
        may differ, if that leaves a single label which belongs to no other image.
        """
        there = self.label_names()
        exact = set(there)
        folded: dict[str, list[str]] = {}
        for label in there:
            folded.setdefault(_folded(label), []).append(label)
        expected = {image: self.stem(image) + self.label_suffix for image in images}
        taken = {name for name in expected.values() if name in exact}
        found: dict[str, str | None] = {}
        for image, name in expected.items():
            similar = [s for s in folded.get(_folded(name), []) if s not in taken]
            found[image] = name if name in exact else similar[0] if len(similar) == 1 else None
        return found

    def hint(self, missing: str, images: Sequence[str], used: Collection[str] = ()) -> str:
        """What may be wrong, for an image without a label; "" if nothing comes to mind.

        Args:
            missing: the image.
            images: all images that need a label, those that have one too.
            used: the labels of other images.
        """
        assert self.labels is not None
        names = (
            p.relative_to(self.labels).as_posix() for p in files_in(self.labels, recursive=True)
        )
        apart = set() if self.labels != self.images else set(images)
        everything = [name for name in names if name not in apart]
        if not everything:
            return f"{self.labels} holds no files"
        if suffixes := self._suffixes(missing, images, everything):
            return "the names fit with IMAGE_SUFFIX: {!r}, LABEL_SUFFIX: {!r}".format(*suffixes)
        wanted = Path(self.stem(missing) + self.label_suffix).name
        for name in everything:
            if "/" in name and Path(name).name == wanted and not self.recursive:
                return f"there is {name}; RECURSIVE: True searches subfolders"
        free = (name for name in everything if name not in used)
        stems = {Path(name).with_suffix("").as_posix(): name for name in free}
        close = difflib.get_close_matches(self.stem(missing), stems, n=1)
        return f"is it {stems[close[0]]}?" if close else ""

    def _suffixes(
        self, missing: str, images: Sequence[str], labels: Sequence[str]
    ) -> tuple[str, str] | None:
        """IMAGE_SUFFIX and LABEL_SUFFIX with which every image would have a label."""
        there = set(labels)
        for label in labels:
            common = _common_start(missing, label)
            if not common or common.endswith("/"):
                continue  # the file names have nothing in common
            image_end, label_end = missing[len(common) :], label[len(common) :]
            # "a.jpg" and "a_gt.png" are told by a label suffix alone, "a_x.png" and "a_y.png" end
            # where they begin to differ: the separator belongs to both.
            if common[-1] in "_-." and image_end and image_end[0] != ".":
                image_end, label_end = common[-1] + image_end, common[-1] + label_end
            if image_end and all(
                i.endswith(image_end) and i.removesuffix(image_end) + label_end in there
                for i in images
            ):
                return image_end, label_end
        return None


def read_split(
    lines: Sequence[str], split: Path, rule: PairingRule, images: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    """The (image, label) pairs that a split file lists; label None: by the rule's suffixes.

    A line is an image, with or without its suffix, or "IMAGE LABEL".

    Args:
        lines: of the file.
        split: its path, for messages.
        rule: where the files are.
        images: names of all images that the rule finds.

    Raises:
        FileNotFoundError, ValueError: for an empty list, an entry without an image, or one image
            that is listed twice.
    """
    known: dict[str, str] = {}
    for image in images:  # the exact names come last, so they win
        known[_folded(rule.stem(image))] = known[_folded(image)] = image
    for image in images:
        known[rule.stem(image)] = known[str(Path(image).with_suffix(""))] = image
    known |= {image: image for image in images}
    seen: dict[str, str] = {}
    for entry in lines:
        pair = _entry(entry, rule, known)
        if pair is None:
            raise ValueError(
                f"{split} names {entry!r}, but {rule.images} has no such image; expected an image "
                f"with or without its suffix, such as {images[0]!r}, or IMAGE LABEL"
                if images
                else f"{split} names {entry!r}, which is not a file below {rule.images}"
            )
        if pair[0] in seen:
            raise ValueError(f"{split} names {pair[0]} twice ({seen[pair[0]]!r}, {entry!r})")
        seen[pair[0]] = entry
        yield pair
    if not seen:
        raise ValueError(f"{split} names no image")


def _entry(entry: str, rule: PairingRule, known: dict[str, str]) -> tuple[str, str | None] | None:
    def image_of(text: str) -> str | None:
        name = known.get(text) or known.get(_folded(text))
        return name or _file_below(rule.images, text)

    if image := image_of(entry):
        return image, None
    if rule.labels is None:
        return None
    for position, character in enumerate(entry):  # names may hold blanks
        if character.isspace():
            image = image_of(entry[:position].strip())
            label = _file_below(rule.labels, entry[position:].strip())
            if image and label:
                return image, label
    return None


def _file_below(folder: Path, name: str) -> str | None:
    """The name of a file in a folder; lists often write "/images/a.jpg" for "images/a.jpg"."""
    folder = Path(os.path.abspath(folder))
    for candidate in (name, name.lstrip("/")):
        path = Path(os.path.abspath(folder / candidate))  # without ".."
        if candidate and path.is_relative_to(folder) and path.is_file():
            return path.relative_to(folder).as_posix()
    return None
