"""Embedded dataset: glyphs of the fonts that matplotlib ships, captioned by their Unicode names.

Training uses the twelve text faces of DejaVu; the test set is STIX General, another typeface, whose
glyphs and some of whose names are not in training. Every glyph is drawn at one scale on one
baseline, so that "c" and "C" differ. Nothing is downloaded; drawing takes seconds and is cached.
"""

import dataclasses
import functools
import logging
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Reader, Record, fingerprint_of
from clip_jax.errors import UserError
from clip_jax.files.disk import replacing
from clip_jax.files.stores import cache_folder

IMAGE_SIZE = 32  # pixels, square
EM_SIZE = 22  # pixels; the tallest letters with accents just fit
BASELINE = 24  # pixels from the top
LAYOUT_VERSION = 1  # of the cache: raise it when the drawing changes

DEJAVU_FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
# This face is held out for choosing settings, so that nothing is ever chosen by looking at STIX.
VALIDATION_FACE = "DejaVuSerif.ttf"
TEST_FACE = "STIXGeneral.ttf"

SPLITS: dict[str, tuple[str, ...]] = {
    "train": DEJAVU_FACES,
    "train_without_validation": tuple(f for f in DEJAVU_FACES if f != VALIDATION_FACE),
    "validation": (VALIDATION_FACE,),
    "test": (TEST_FACE,),
}


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """`Source` of glyphs in memory: grey images (N, 32, 32) uint8, black ink on white."""

    images: np.ndarray
    names: tuple[str, ...]
    codepoints: np.ndarray  # (N,) int32
    faces: tuple[str, ...]
    face_index: np.ndarray  # (N,) int8
    dropped: Drops = dataclasses.field(default_factory=Drops)

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        """Returns face and code point, for example "DejaVuSans/U+0041"."""
        face = self.faces[self.face_index[index]].removesuffix(".ttf")
        return f"{face}/U+{self.codepoints[index]:04X}"

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the lower-case Unicode name, for example "latin small letter a"."""
        return (self.names[index],)

    def metadata(self, index: int) -> dict[str, Any]:
        """Returns the name as "class", the code point and the face."""
        codepoint = int(self.codepoints[index])
        face = self.faces[self.face_index[index]]
        return {"class": self.names[index], "codepoint": codepoint, "face": face}

    def __getitem__(self, index: int) -> Record:
        image = np.repeat(self.images[index][..., None], 3, axis=-1)
        return Record(self.key(index), image, self.captions(index))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of every key and name, not of pixels, which differ a little between font engines."""
        indices = range(len(self))
        return fingerprint_of((self.key(index), self.captions(index)) for index in indices)


def _draw_face(face: str) -> tuple[np.ndarray, list[int]]:
    """Draws all named, non-blank glyphs of a face: (N, 32, 32) uint8 and their code points."""
    # The imports are local because classifying a photo needs neither matplotlib nor fonts.
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    path = Path(get_data_path()) / "fonts" / "ttf" / face
    if not path.exists():
        raise UserError(f"font {path}: not found; this matplotlib does not ship {face}")
    # The BASIC layout draws one code point as one glyph; raqm does shaping and fails on some.
    font = ImageFont.truetype(str(path), EM_SIZE, layout_engine=ImageFont.Layout.BASIC)
    images, codepoints = [], []
    for codepoint in sorted(TTFont(path, lazy=True).getBestCmap()):
        character = chr(codepoint)
        if not unicodedata.name(character, ""):
            continue
        left, _, right, _ = font.getbbox(character, anchor="ls")
        image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 255)
        # The ink is centred, because side bearings are spacing, not shape.
        origin = ((IMAGE_SIZE - (right - left)) / 2 - left, BASELINE)
        ImageDraw.Draw(image).text(origin, character, fill=0, font=font, anchor="ls")
        pixels = np.asarray(image)
        if pixels.min() < 255:
            images.append(pixels)
            codepoints.append(codepoint)
    return np.stack(images), codepoints


def _cache_path(face: str) -> Path:
    import matplotlib
    import PIL

    # The drawings depend on the fonts, the engine and the Unicode version that names glyphs.
    versions = f"{matplotlib.__version__}-{PIL.__version__}-{unicodedata.unidata_version}"
    return (
        cache_folder() / "glyphs" / f"v{LAYOUT_VERSION}-{versions}-{face.removesuffix('.ttf')}.npz"
    )


def _load_face(face: str) -> tuple[np.ndarray, np.ndarray]:
    path = _cache_path(face)
    if path.exists():
        try:
            with np.load(path) as stored:
                return stored["images"], stored["codepoints"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logging.warning("glyph cache %s is damaged (%s): drawing again", path, error)
    images, codepoints = _draw_face(face)
    points = np.asarray(codepoints, np.int32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside, open(aside, "wb") as file:
            np.savez_compressed(file, images=images, codepoints=points)
    except OSError as error:
        logging.warning("glyph cache %s cannot be written (%s): going on without", path, error)
    return images, points


def open_glyphs(split: str, options: SourceOptions | None = None) -> Glyphs:
    """Opens the glyphs of a split: "train", "train_without_validation", "validation" or "test".

    The options are ignored. Raises `UserError` for another name.
    """
    if split not in SPLITS:
        raise UserError(f"data.path={split!r}: the glyphs have the splits {', '.join(SPLITS)}")
    faces = SPLITS[split]
    loaded = [_load_face(face) for face in faces]
    codepoints = np.concatenate([points for _, points in loaded])
    return Glyphs(
        images=np.concatenate([images for images, _ in loaded]),
        names=tuple(unicodedata.name(chr(point)).lower() for point in codepoints),
        codepoints=codepoints,
        faces=faces,
        face_index=np.repeat(np.arange(len(faces), dtype=np.int8), [len(p) for _, p in loaded]),
    )


def is_ascii_letter(codepoint: int) -> bool:
    """Returns whether a code point is in A–Z or a–z, the 52 classes of the letters task."""
    return codepoint < 128 and chr(codepoint).isalpha()


READER = Reader("glyphs", open_glyphs, files="", in_memory=True, no_columns="its images are drawn")
