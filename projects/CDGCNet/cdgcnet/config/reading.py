"""Reads config files as plain values: safe YAML, ``_BASE_`` files first, and nothing executed.

Detectron2's own ``merge_from_file`` loads YAML with tags that run Python code.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "_BASE_"
MAX_BYTES = 1 << 20
MAX_VALUES = 10_000  # a few kilobytes of nested YAML aliases can stand for billions of values


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a mapping with the same key twice; PyYAML keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1 and key != "<<"})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]} occurs twice in one section", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _count_values(value: Any, budget: int) -> int:
    """``budget`` less the number of values in a document, aliases expanded; negative if over."""
    stack = [value]
    while stack and budget >= 0:
        item = stack.pop()
        budget -= 1
        if isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            stack.extend(item)
    return budget


def _yaml_reason(error: Exception) -> str:
    """A YAML error in one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "could not determine a constructor for the tag" in problem:
        tag = problem.split("'")[1].replace("tag:yaml.org,2002:", "!!")
        problem = f"the tag {tag} is not allowed; a config holds plain values only"
    return f"line {mark.line + 1}: {problem}" if mark else problem


def parse_yaml(text: str) -> dict[str, Any]:
    """The mapping in a YAML text.

    Raises:
        ValueError: for anything but a mapping of plain values, with the line where it is known.
    """
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not a valid config: {_yaml_reason(error)}") from error
    if loaded is None:
        raise ValueError("the file is empty; expected sections such as MODEL and SOLVER")
    if not isinstance(loaded, dict):
        raise ValueError(f"expected a mapping of keys to values, found a {type(loaded).__name__}")
    if _count_values(loaded, MAX_VALUES) < 0:
        raise ValueError(f"more than {MAX_VALUES} values (YAML aliases are expanded)")
    return loaded


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected a YAML file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES >> 20} MiB; expected a YAML config")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file; expected a YAML config") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def flatten(mapping: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty section yields nothing."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_config_file(
    path: Path, including: tuple[Path, ...] = ()
) -> Iterator[tuple[Path, str, Any]]:
    """File, dotted key and value of every entry, the files named by ``_BASE_`` first.

    Args:
        path: the YAML file. ``_BASE_``, one path or a list, is relative to the file it is in.
        including: the files on the way to this one.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    loaded = _read(path)
    bases = loaded.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(b, str) and b for b in bases):
        raise ValueError(f"{path}: {BASE_KEY} is {bases!r}; expected a path or a list of paths")
    for base in bases:
        base_path = path.parent / Path(base).expanduser()
        chain = (*including, path)
        if base_path.resolve() in {p.resolve() for p in chain}:
            raise ValueError(f"{path}: {BASE_KEY} {base} includes itself")
        if not base_path.is_file():
            raise FileNotFoundError(f"{path}: {BASE_KEY}: there is no file {base_path}")
        yield from read_config_file(base_path, chain)
    for key, value in flatten(loaded):
        yield path, key, value


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per entry that is not the same."""
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
