"""The report of an audit as one HTML page: tables, swatches and example pictures.

Shape shorthand: image (H, W, 3) RGB, labels (H, W).
"""

import random
from html import escape
from pathlib import Path

import cv2
import numpy as np

from cdgcnet.data.audit.issues import Report, Sample
from cdgcnet.data.decoding import NO_LIMIT
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import color_map
from cdgcnet.visualization.encoding import data_url, jpeg

_SIDE = 400  # pixels; larger pictures are scaled down
_PICTURES = 12
_LISTED = 500  # files per type of issue; more would make the page slow

_STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --line: #ddd; --error: #b00020;
        --warning: #8a5a00 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --page: #16181c; --line: #363b43; --error: #ff8f86; --warning: #e0b050 }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em;
       color: var(--text); background: var(--page); overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
        overflow-x: auto; overflow-wrap: normal }
th, td { padding: .15em .8em; text-align: left; border-bottom: 1px solid var(--line) }
td { white-space: nowrap } pre { white-space: pre-wrap }
td.number { text-align: right }
.swatch { display: inline-block; width: 1em; height: 1em; border: 1px solid #888;
          vertical-align: -.15em; margin-right: .5em }
.bar { height: .8em; background: #5b8; min-width: 1px }
.error h3 { color: var(--error) } .warning h3 { color: var(--warning) }
.pictures { display: grid; gap: 1em;
            grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)) }
figure { margin: 0 } figure img { width: 100%; display: block } figcaption { font-size: 13px }
"""


def check_page(path: Path, overwrite: bool) -> None:
    """Refuse a path that no page can be written to.

    Raises:
        ValueError: for a folder, a name of no page, or a file that would be lost.
    """
    if path.is_dir():
        raise ValueError(f"--html {path}: it is a folder; expected the name of a file")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html {path}: expected a name that ends with .html")
    if path.exists() and not overwrite:
        raise ValueError(f"--html {path}: it exists; choose another name or add --overwrite")


def choose(report: Report, number: int = _PICTURES, seed: int = 0) -> list[tuple[Sample, str]]:
    """Samples worth a look, each once, and why: most ignored, rarest classes, or random."""
    sound = [s for s in report.samples if s.sound]
    chosen: dict[str, tuple[Sample, str]] = {}
    by_ignored = sorted(sound, key=lambda s: -s.ignored_share)
    for sample in by_ignored[: number // 3]:
        if sample.ignored:
            chosen[sample.image] = (sample, "most ignored")
    pixels = report.pixels
    rarest = [int(c) for c in np.argsort(pixels, kind="stable") if pixels[c]]
    for c in rarest[: number // 3]:
        # The image with the most pixels of the class.
        having = [s for s in sound if s.counts[c]]
        for sample in sorted(having, key=lambda s: -int(s.counts[c]))[:1]:
            chosen.setdefault(sample.image, (sample, f"rare class {report.classes[c]}"))
    rest = [s for s in sound if s.image not in chosen]
    number = min(number - len(chosen), len(rest))
    for sample in random.Random(seed).sample(rest, number):
        chosen[sample.image] = (sample, "random")
    return list(chosen.values())


def _figure(report: Report, sample: Sample, reason: str) -> str:
    image = read_image(sample.image, max_pixels=NO_LIMIT)
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    caption = f"<b>{escape(reason)}</b> {escape(Path(sample.image).name)}"
    if sample.label is not None:
        spec = LabelSpec(len(report.classes), lut=sample.lut)
        labels = spec.to_ids(read_labels(sample.label, NO_LIMIT))
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        colors = color_map(labels, list(report.colors), striped=True)
        picture = np.hstack([picture, cv2.addWeighted(picture, 0.45, colors, 0.55, 0)])
        present = np.argsort(-sample.counts.astype(np.int64), kind="stable")
        names = [report.classes[c] for c in present if sample.counts[c]]
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        caption += f"<br>{100 * sample.ignored_share:.1f} % ignored; {escape(shown)}"
    url = data_url(jpeg(picture, quality=85), "image/jpeg")
    return f'<figure><img alt="" src="{url}"><figcaption>{caption}</figcaption></figure>'


def _issue_list(report: Report, *, errors: bool) -> str:
    parts = []
    for issue_type, issues in report.grouped(errors=errors):
        items = "".join(f"<li>{escape(str(issue))}</li>" for issue in issues[:_LISTED])
        if len(issues) > _LISTED:
            items += f"<li>… and {len(issues) - _LISTED} more</li>"
        parts.append(
            f"<h3>{escape(issue_type.title)} ({len(issues)})</h3><p>{escape(issue_type.advice)}</p>"
            f"<details{' open' * (len(issues) <= 10)}><summary>files</summary><ul>{items}</ul>"
            "</details>"
        )
    word = "error" if errors else "warning"
    return f'<section class="{word}"><h2>{word.title()}s</h2>{"".join(parts) or "none"}</section>'


def _class_table(report: Report) -> str:
    percent = report.percent
    largest = max(percent.max(), 1e-9)
    rows = []
    for i, (name, color) in enumerate(zip(report.classes, report.colors, strict=True)):
        red, green, blue = (int(c) for c in color)
        rows.append(
            f'<tr><td class="number">{i}</td><td><span class="swatch" style="background:'
            f'rgb({red},{green},{blue})"></span>{escape(name)}</td>'
            f'<td class="number">{percent[i]:.3f}</td><td style="width:220px">'
            f'<div class="bar" style="width:{100 * percent[i] / largest:.1f}%"></div></td>'
            f'<td class="number">{report.images[i]}</td></tr>'
        )
    return (
        "<h2>Classes</h2><table><tr><th>id</th><th>class</th><th>% of labeled pixels</th>"
        f"<th></th><th>images</th></tr>{''.join(rows)}</table>"
        f"<pre>{escape(chr(10).join(report.suggested_weights()))}</pre>"
    )


def page(report: Report) -> str:
    """The whole page; it needs no other file."""
    figures = "".join(_figure(report, sample, reason) for sample, reason in choose(report))
    more = [line for line in [report.ignored_per_image()] if line]
    notes = "".join(f"<br>{escape(note)}" for note in [*more, *report.notes])
    title = escape(f"Audit of {report.name}")
    striped = " Ignored pixels are striped." if report.labeled else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p><b>{escape(report.verdict())}</b>: {escape(report.totals())}{notes}</p>"
        f"{_issue_list(report, errors=True)}{_issue_list(report, errors=False)}"
        f"{_class_table(report) if report.labeled else ''}"
        f'<h2>Pictures</h2><p>Sound pairs only.{striped}</p><div class="pictures">{figures}</div>'
        "</body></html>\n"
    )


def write_page(report: Report, path: Path) -> None:
    """Write :func:`page` to a file, whole or not at all."""
    text = page(report)
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")
