"""Pages made of jinja2 templates: text is escaped, pictures are inside, nothing is loaded."""

import base64
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from clip_jax.errors import UserError
from clip_jax.report.charts import DARK, LIGHT, Chart, Histogram

THUMBNAIL = 144  # pixels; larger pictures are shrunk to save space
SMALL = 64  # pixels; up to this size pictures are shown pixel by pixel


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page; `kind` names the macro of kinds.html that shows `body`."""

    title: str
    kind: str = ""
    lead: str = ""  # says what is shown and how that was chosen
    body: Any = None
    why: str = ""  # the reason, if the section is left out


def made_or_left_out(title: str, kind: str, make: Callable[[], tuple[str, Any]]) -> Section:
    """The section of `make()`, (lead, body), or the reason for its omission.

    One missing piece must not cost the others.
    """
    try:
        return Section(title, kind, *make())
    except (UserError, OSError) as error:
        return Section(title, why=f"{error}.")


def render(
    *, name: str, title: str, about: str, figures: list[tuple[str, str]], sections: list[Section]
) -> str:
    """A page as HTML. `name`: of the browser's tab; `figures`: (figure, label) of its tiles."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=short, picture_url=picture_url, chart_urls=chart_urls)
    return environment.get_template("page.html").render(
        name=name, title=title, about=about, figures=figures, sections=sections
    )


def short(caption: str, limit: int = 140) -> str:
    """A caption for display, on one line and cut to `limit` characters."""
    words = " ".join(caption.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def picture_url(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as a data URL: PNG if small, else a JPEG thumbnail."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        if (pixels == pixels[..., :1]).all():
            image = image.convert("L")
        image.save(buffer, "PNG", optimize=True)
        return _data_url(buffer.getvalue(), "png")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return _data_url(buffer.getvalue(), "jpeg")


def chart_urls(chart: Chart | Histogram) -> tuple[str, str]:
    """Data URLs of a chart's light and dark version."""
    return _data_url(chart.png(LIGHT), "png"), _data_url(chart.png(DARK), "png")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
