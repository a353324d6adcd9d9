"""One interface to source files, whether they lie in folders or inside archives."""

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

Content = Path | bytes  # the path of a loose file, or the bytes of a member of an archive

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|tar\.bz2|tar\.xz)$", re.IGNORECASE)
# macOS puts a file ._NAME next to each NAME.
_MAC_EXTRA = re.compile(r"(?:^|/)(?:__MACOSX/|\._[^/]*$)")
# A compressed tar has no table of contents. Unless its name is official, only this many members
# are examined.
_PEEK = 500
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # encrypted; NotImplementedError is one: unknown compression
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
)


@dataclass(frozen=True, eq=False)  # only the same open file is equal
class Archive:
    """An open zip or tar file."""

    path: Path
    handle: zipfile.ZipFile | tarfile.TarFile

    def members(self) -> Iterator[zipfile.ZipInfo | tarfile.TarInfo]:
        """Regular files, in the order in which they are stored."""
        if isinstance(self.handle, zipfile.ZipFile):
            infos = (info for info in self.handle.infolist() if not info.is_dir())
            yield from sorted(infos, key=lambda info: info.header_offset)
        else:
            # Links and devices are skipped: a link may point outside the archive.
            yield from (info for info in self.handle if info.isreg())

    def read(self, member: zipfile.ZipInfo | tarfile.TarInfo) -> bytes:
        if isinstance(self.handle, zipfile.ZipFile):
            assert isinstance(member, zipfile.ZipInfo)
            return self.handle.read(member)
        assert isinstance(member, tarfile.TarInfo)
        stream = self.handle.extractfile(member)
        assert stream is not None  # a regular file
        return stream.read()


@dataclass(frozen=True)
class File:
    """One file of the sources.

    Attributes:
        name: its path with "/", absolute if it is loose, else inside the archive.
        archive, member: None for a loose file.
        position: orders the members of an archive as they are stored.
    """

    name: str
    archive: Archive | None = None
    member: zipfile.ZipInfo | tarfile.TarInfo | None = None
    position: int = 0

    def __str__(self) -> str:
        return self.name if self.archive is None else f"{self.archive.path}: {self.name}"

    @property
    def folder(self) -> str:
        """The path without its last component."""
        return self.name.rpartition("/")[0]

    def content(self) -> Content:
        """The path of a loose file, the bytes of a member.

        Raises:
            ValueError: naming a member that cannot be read.
        """
        if self.archive is None or self.member is None:
            return Path(self.name)
        try:
            return self.archive.read(self.member)
        except _DAMAGED as error:
            raise ValueError(
                f"{self}: cannot be read, the archive is damaged ({error or 'it ends early'}); "
                "download it again"
            ) from error

    def lines(self) -> list[str]:
        """The lines of a text file, stripped, without empty ones.

        Raises:
            ValueError: naming a file that cannot be read or is not text.
        """
        content = self.content()
        try:
            data = content if isinstance(content, bytes) else content.read_bytes()
            return [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}: expected a text file, found binary data") from error


@dataclass
class Sources:
    """The files that were found.

    Attributes:
        files: recognized files, loose ones first; of several with the same role the first counts.
        problems: one message per damaged archive, unreadable folder or unsafe member.
        archives: all archives that were opened.
        loose: number of loose files seen, recognized or not.
    """

    files: list[File] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    archives: list[Archive] = field(default_factory=list)
    loose: int = 0

    def matching(self, pattern: str) -> Iterator[tuple[re.Match[str], File]]:
        """Files whose path ends with a match of ``pattern``, a regular expression."""
        regex = re.compile(_ending(pattern))
        for file in self.files:
            match = regex.search(file.name)
            if match:
                yield match, file

    def first(self, pattern: str, group: str) -> dict[str, File]:
        """The first file for each text that a group of ``pattern`` matches."""
        files: dict[str, File] = {}
        for match, file in self.matching(pattern):
            files.setdefault(match[group], file)
        return files

    def nothing(self, what: str, looked_for: str) -> ValueError:
        """The error for sources without the files of a dataset."""
        looked_into = ", ".join(archive.path.name for archive in self.archives) or "none"
        return ValueError(
            f"--src: {what} not found. Looked for:\n{looked_for}\n"
            f"Found: {self.loose} files; archives opened: {looked_into}"
        )

    def close(self) -> None:
        for archive in self.archives:
            archive.handle.close()


def find(src: Sequence[Path], wanted: Sequence[str], official: Collection[str]) -> Sources:
    """All files below ``src``, loose or in archives, whose path ends with a match of ``wanted``.

    Args:
        src: folders, searched at any depth, and archives.
        wanted: regular expressions for the last components of a path, "/" between them.
        official: names of archives that are always read to the end. Other archives are opened
            too, but only the start of a compressed tar is read.

    Raises:
        FileNotFoundError: for a path that is not there.
    """
    # Without the names of their groups, which may occur in several.
    regex = re.compile("|".join(_ending(re.sub(r"\?P<\w+>", "", w)) for w in wanted))
    found = Sources()
    archives = []
    for top in src:
        top = top.expanduser().absolute()
        if not top.exists():
            raise FileNotFoundError(f"--src {top}: there is no such file or folder")
        for path in _walk(top, found.problems) if top.is_dir() else [top]:
            found.loose += 1
            if _ARCHIVE.search(path.name):
                archives.append(path)
            elif regex.search(path.as_posix()) and not _MAC_EXTRA.search(path.as_posix()):
                found.files.append(File(path.as_posix()))
    for path in dict.fromkeys(archives):
        _look_into(path, regex, path.name in official, found)
    return found


def _ending(pattern: str) -> str:
    return rf"(?:^|/)(?:{pattern})$"


def _walk(top: Path, problems: list[str]) -> Iterator[Path]:
    """All files below a folder. Linked folders are followed; each folder is visited once."""
    visited = set()

    def report(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read ({error.strerror})")

    for here, folders, names in os.walk(top, onerror=report, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in (Path(here) / name for name in sorted(names)):
            if path.exists() and not path.is_file():  # a pipe would block whoever opens it
                problems.append(f"{path}: not a regular file")
            else:
                yield path


def _look_into(path: Path, wanted: re.Pattern[str], official: bool, found: Sources) -> None:
    """Add the wanted members of an archive; if it is damaged, those before the damage."""
    is_zip = path.suffix.lower() == ".zip"
    read_all = official or is_zip or path.suffix.lower() == ".tar"
    try:
        # Left open for the conversion; Sources.close closes it.
        archive = Archive(path, zipfile.ZipFile(path) if is_zip else tarfile.open(path))  # noqa: SIM115
        found.archives.append(archive)
        before = len(found.files)
        for position, member in enumerate(archive.members()):
            if position == _PEEK and not read_all and len(found.files) == before:
                break
            name = _name(member)
            if not wanted.search(name) or _MAC_EXTRA.search(name):
                continue
            if _is_safe(name):
                found.files.append(File(name, archive, member, position))
            else:
                found.problems.append(f"{path}: {name}: refused, the path leaves its folder")
    except _DAMAGED as error:
        found.problems.append(_damage(path, error))


def _damage(path: Path, error: BaseException) -> str:
    reason = str(error).partition("\n")[0] or "it ends early"
    return f"{path}: not a whole archive ({reason}); download it again"


def _name(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    name = member.filename if isinstance(member, zipfile.ZipInfo) else member.name
    return name.removeprefix("./")


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
