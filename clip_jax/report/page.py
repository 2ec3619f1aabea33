"""Building blocks of the page: escaped text, embedded pictures, cards and tables.

Everything from data or configuration passes through `text`; nothing refers to another file.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.report.style import CSS

THUMBNAIL = 144  # pixels; larger pictures are shrunk to save space
SMALL = 64  # pixels; up to this size pictures are shown pixel by pixel

# The browser itself blocks anything outside the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: Any) -> str:
    """Anything as HTML text, also valid in a quoted attribute."""
    return html.escape(str(value), quote=True)


def css_class(name: str, applies: bool) -> str:
    """A class attribute if it applies, else ""."""
    return f' class="{name}"' if applies else ""


def short(caption: str, limit: int = 140) -> str:
    """A caption for display, on one line and cut to `limit` characters."""
    words = " ".join(caption.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def document(title: str, body: str) -> str:
    """A whole page around `body` (HTML)."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def section(title: str, lead: str, body: str) -> str:
    """A section with a heading; `lead` (plain text) says what it shows and how that was chosen."""
    shown = f'<p class="lead">{text(lead)}</p>\n' if lead else ""
    return f"<section>\n<h2>{text(title)}</h2>\n{shown}{body}\n</section>"


def left_out(title: str, why: str) -> str:
    """A section that was left out, with the reason."""
    return section(title, "", f'<p class="card left-out">Left out: {text(why)}</p>')


def grid(kind: str, items: Iterable[str]) -> str:
    """Items (HTML) side by side, as many as fit the screen."""
    inside = "\n".join(items)
    return f'<div class="grid {kind}">\n{inside}\n</div>'


def tiles(items: Sequence[str]) -> str:
    """Tiles in one row, or in two of equal length if there are more than five."""
    columns = len(items) if len(items) <= 5 else -(-len(items) // 2)
    inside = "\n".join(items)
    return f'<div class="grid tiles" style="--columns:{max(columns, 1)}">\n{inside}\n</div>'


def tile(value: str, label: str) -> str:
    """A tile with a figure and its label."""
    return f'<div class="card tile"><b>{text(value)}</b><span>{text(label)}</span></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values in columns."""
    inside = "\n".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="facts">\n{inside}\n</dl>'


def picture(pixels: np.ndarray, alt: str) -> str:
    """uint8 (S, S, 3) as an <img> that holds its own data.

    Small pictures stay PNG and show their pixels; photos become JPEG thumbnails.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        if (pixels == pixels[..., :1]).all():
            image = image.convert("L")
        image.save(buffer, "PNG", optimize=True)
        kind, style = "png", "picture pixels"
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=86)
        kind, style = "jpeg", "picture"
    return f'<img class="{style}" alt="{text(alt)}" src="{_data_url(buffer.getvalue(), kind)}">'


def themed_picture(light: bytes, dark: bytes, alt: str) -> str:
    """A PNG in two versions, chosen by the reader's colour scheme."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data_url(dark, "png")}">'
        f'<img alt="{text(alt)}" src="{_data_url(light, "png")}"></picture>'
    )


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _breakable(path: str) -> str:
    """A path as HTML that wraps between its parts rather than within a word."""
    return text(path).replace("/", "/<wbr>")


def metrics_table(
    groups: Sequence[tuple[str, Sequence[str]]], rows: Sequence[tuple[str, str, Sequence[str], str]]
) -> str:
    """A table with column groups (name, titles) and rows (name, detail, cells, count)."""
    first = {0}
    for _, titles in groups:
        first.add(max(first) + len(titles))

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{css_class('first', i in first)}>{text(v)}</{tag}>"
            for i, v in enumerate(values)
        )

    heads = "".join(f'<th colspan="{len(titles)}">{text(name)}</th>' for name, titles in groups)
    titles = [title for _, members in groups for title in members]
    lines = [
        f'<tr><th class="name">{text(name)}<small>{_breakable(detail)}</small></th>'
        f'{cells("td", values)}<td class="first">{text(count)}</td></tr>'
        for name, detail, values, count in rows
    ]
    body = "\n".join(lines)
    return (
        '<div class="card scroll"><table class="metrics">\n'
        f"<thead><tr><th></th>{heads}<th></th></tr>\n"
        f'<tr><th class="name">task</th>{cells("th", titles)}'
        '<th class="first">images</th></tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
