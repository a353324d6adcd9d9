"""Mutated images and labels: read as an array of the right form, or refused by name."""

import io
import random
import zlib
from pathlib import Path

import numpy as np
from cases import in_child, refusal
from outcomes import RIGHT, WRONG, Outcome
from PIL import Image

from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
MODES = ("RGB", "L", "P", "1", "I;16", "RGBA", "LA", "CMYK", "F")


def draw_file(rng: random.Random) -> tuple[bytes, str]:
    """A sound image file of a random format and mode, and its suffix."""
    height, width = rng.choice(((1, 1), (7, 5), (16, 16), (33, 40), (1, 60)))
    mode = rng.choice(MODES)
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 255, (height, width, 3))
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((values[:, :, 0] * 200).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(values[:, :, 0].astype(np.float32))
    elif mode != "RGB":
        image = image.convert(mode)
    for file_format in rng.sample(FORMATS, len(FORMATS)):
        buffer = io.BytesIO()
        try:
            image.save(buffer, format=file_format)
        except (OSError, ValueError, KeyError):
            continue  # the format does not have this mode
        return buffer.getvalue(), {"JPEG": ".jpg", "TIFF": ".tif"}.get(
            file_format, f".{file_format.lower()}"
        )
    raise AssertionError(f"no format stores mode {mode}")


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, position = [], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts += [len(body).to_bytes(4, "big"), kind, body]
        parts.append(zlib.crc32(kind + body).to_bytes(4, "big"))
    return b"".join(parts)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """A PNG whose chunks or header are changed, with valid checksums."""
    chunks = _png_chunks(data)
    way = rng.randrange(5)
    if way == 0:
        del chunks[rng.randrange(len(chunks))]
    elif way == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(chunks))
    elif way == 2:
        header = bytearray(chunks[0][1])
        field = rng.choice((slice(0, 4), slice(4, 8)))
        header[field] = rng.choice((0, 1, 9, 50000, 1 << 20, (1 << 31) - 1)).to_bytes(4, "big")
        chunks[0] = (chunks[0][0], bytes(header))
    elif way == 3:
        header = bytearray(chunks[0][1])
        header[rng.randrange(8, 13)] = rng.randrange(256)  # depth, color type, interlace …
        chunks[0] = (chunks[0][0], bytes(header))
    else:
        extra = rng.choice((b"eXIf", b"tRNS", b"gAMA", b"iCCP", b"acTL", b"PLTE"))
        chunks.insert(1, (extra, rng.randbytes(rng.choice((0, 1, 6, 300)))))
    return _png(chunks)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bit flips, truncation, foreign bytes, zeroed parts, or changed PNG chunks."""
    if data.startswith(b"\x89PNG") and rng.random() < 0.5:
        return mutate_png(data, rng)
    changed = bytearray(data)
    way = rng.randrange(5)
    if way == 0:
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif way == 1:
        del changed[rng.randrange(len(changed)) :]
    elif way == 2:
        begin = rng.randrange(len(changed))
        changed[begin : begin + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
    elif way == 3:
        begin = rng.randrange(len(changed))
        end = min(len(changed), begin + rng.randrange(1, 60))
        changed[begin:end] = bytes(end - begin)
    else:
        changed += rng.randbytes(rng.randrange(1, 200))
    return bytes(changed)


def case(rng: random.Random, folder: Path) -> Outcome:
    data, suffix = draw_file(rng)
    if rng.random() < 0.95:
        data = mutate(data, rng)
    path = folder / f"image{rng.choice((suffix, suffix, '.png', '.jpg'))}"
    path.write_bytes(data)
    read = read_labels if rng.random() < 0.5 else read_image

    def work() -> Outcome:
        try:
            array = read(path)
        except (ValueError, FileNotFoundError) as error:
            return refusal(error, [path.name])
        form = array.ndim == 2 if read is read_labels else array.shape[2:] == (3,)
        kind = (
            array.dtype in (np.uint8, np.uint16) if read is read_labels else np.uint8 == array.dtype
        )
        if not form or not kind or 0 in array.shape:
            return Outcome(WRONG, f"{read.__name__}: {array.dtype} {array.shape}")
        return Outcome(RIGHT)

    return in_child(work, folder / "log.txt")
