"""Reading the HTML pages that programs write."""

import base64
import html
import io
import re

from PIL import Image


def words(part: str) -> str:
    """The text of a piece of HTML, without styles."""
    text = re.sub(r"<style.*?</style>|<[^>]+>", " ", part, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", text))


def sections(page: str) -> dict[str, str]:
    """Title -> HTML of each section."""
    found = re.findall(r"<section>\s*<h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL)
    return {html.unescape(title): body for title, body in found}


def tiles(page: str) -> dict[str, str]:
    """Label -> figure of each tile."""
    found = re.findall(r'class="card tile"><b>(.*?)</b><span>(.*?)</span>', page)
    return {label: value for value, label in found}


def pictures(part: str) -> list[Image.Image]:
    """The decoded images in a piece of HTML, in order."""
    found = re.findall(r'"data:image/(?:png|jpeg);base64,([^"]*)"', part)
    images = [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for data in found]
    for image in images:
        image.load()
    return images


def is_self_contained(page: str) -> bool:
    """Whether nothing in the page can run or is loaded from elsewhere."""
    elsewhere = r"\b(?:src|srcset|href)\s*=\s*(?!\"data:)|url\(|@import|https?://"
    active = r"<(?:link|script|iframe)"
    return "default-src 'none'" in page and not re.search(f"{elsewhere}|{active}", page)
