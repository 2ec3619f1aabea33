"""Which images, labels and queries the report shows: drawn with a fixed seed, never by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from clip_jax.data import glyphs
from clip_jax.data.image import ImageTransform
from clip_jax.data.records import DecodeError, Source
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_templates, read_classnames
from clip_jax.report.inputs import RunFiles

SEED = 0
SHOWN_IMAGES = 12  # of a quiz
SHOWN_PAIRS = 8  # of the similarity table
DRAWN_QUERIES = 3
MAX_GALLERY = 500  # images that are searched, where the data are not glyphs
MAX_CANDIDATES = 1000  # captions among which the model chooses
MAX_PROMPTS = 2000  # class names × templates; beyond it fewer templates have to do
MAX_LABELS_READ = 50_000  # records whose label is looked up to collect the class names

GLYPH_QUERIES = ("greek small letter omega", "rightwards arrow", "roman numeral seven")
DRAWN = f"drawn at random with seed {SEED}"


@dataclasses.dataclass(frozen=True)
class Quiz:
    """Images to be labelled, and the labels to choose from."""

    title: str
    lead: str
    images: list[int]  # numbers in the gallery
    candidates: list[str]
    truths: list[frozenset[str]]  # of each image, the labels that are right
    templates: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images as the model sees them, with all that the report asks about them."""

    origin: str  # for example "held-out images of photos/test"
    pixels: np.ndarray  # uint8 (N, S, S, 3)
    captions: list[tuple[str, ...]]
    quizzes: list[Quiz]
    queries: list[str]
    query_note: str
    pairs: list[int]  # images with captions that all differ


def open_gallery(run: RunFiles, transform: ImageTransform) -> Gallery:
    """The images that suit the run: glyphs of an unseen typeface, or the user's own.

    Raises `UserError` where the data cannot be opened or no image can be decoded.
    """
    if run.setting("data.format") == "glyphs":
        return _glyph_gallery(str(run.setting("data.path", "train")), transform)
    return _own_gallery(run, transform)


def _draw(purpose: int, count: int, total: int) -> list[int]:
    """Distinct numbers below `total`; each purpose has its own."""
    rng = np.random.default_rng([SEED, purpose])
    return [int(i) for i in rng.choice(total, size=min(count, total), replace=False)]


def _glyph_gallery(trained_on: str, transform: ImageTransform) -> Gallery:
    # A run that leaves a face out for choosing settings must not be looked at through the test.
    split = "validation" if trained_on == "train_without_validation" else "test"
    source = glyphs.open_glyphs(split)
    typeface = source.faces[0].removesuffix(".ttf")
    seen = set(glyphs.SPLITS.get(trained_on, ())) & set(source.faces)
    origin = f"{'training' if seen else 'held-out'} glyphs of the typeface {typeface}"
    letters = [i for i, c in enumerate(source.codepoints) if glyphs.is_ascii_letter(int(c))]
    others = sorted(set(range(len(source))) - set(letters))
    quizzes = []
    for purpose, (title, chosen, candidates) in enumerate(
        (
            ("Which letter is this?", letters, [source.names[i] for i in letters]),
            ("Which character is this?", others, sorted(set(source.names))),
        )
    ):
        images = [chosen[i] for i in _draw(purpose, SHOWN_IMAGES, len(chosen))]
        kind = "letters" if chosen is letters else "other characters"
        quizzes.append(
            Quiz(
                title=title,
                lead=f"{len(images)} of the {len(chosen):,} {kind}, {DRAWN}; the model "
                f"chooses among {len(candidates):,} names.",
                images=images,
                candidates=candidates,
                truths=[frozenset({source.names[i]}) for i in images],
                templates=get_templates("none"),
            )
        )
    names = sorted(set(source.names) - set(GLYPH_QUERIES))
    drawn = [names[i] for i in _draw(2, DRAWN_QUERIES, len(names))]
    return Gallery(
        origin=origin,
        pixels=np.stack([transform(source[i].image) for i in range(len(source))]),
        captions=[source.captions(i) for i in range(len(source))],
        quizzes=quizzes,
        queries=[*GLYPH_QUERIES, *drawn],
        query_note=f"The first {len(GLYPH_QUERIES)} queries are the same in every report, the "
        f"others are {DRAWN} from all names.",
        pairs=_draw(3, SHOWN_PAIRS, len(source)),
    )


def _own_gallery(run: RunFiles, transform: ImageTransform) -> Gallery:
    source, origin = _open_own(run)
    numbers, pixels = [], []
    reasons = ""
    # A few more than needed: some may not be decodable.
    for index in _draw(4, 2 * MAX_GALLERY, len(source)):
        try:
            pixels.append(transform(source[index].image))
        except DecodeError as error:
            reasons = str(error)
            continue
        numbers.append(index)
        if len(numbers) == MAX_GALLERY:
            break
    if not numbers:
        raise UserError(f"no image of the {origin} can be decoded ({reasons or 'there is none'})")
    captions = [source.captions(index) for index in numbers]
    queries = list(dict.fromkeys(texts[0] for texts in captions))[: 2 * DRAWN_QUERIES]
    distinct: dict[str, int] = {}
    for image, texts in enumerate(captions):
        distinct.setdefault(texts[0], image)
    return Gallery(
        origin=origin,
        pixels=np.stack(pixels),
        captions=captions,
        quizzes=[_own_quiz(run, source, numbers, captions)],
        queries=queries,
        query_note=f"The queries are captions of these images, {DRAWN}.",
        pairs=list(distinct.values())[:SHOWN_PAIRS],
    )


def _open_own(run: RunFiles) -> tuple[Source, str]:
    """The user's images, those held out for evaluation where there are such; and what they are."""
    template = run.setting("data.caption_template", "a photo of a {}.")
    training, held_out = run.setting("data.path", ""), run.setting("evaluation.path", "")
    if held_out and held_out != training:
        source = open_source(held_out, caption_template=template)
        return source, f"held-out images of {held_out}"
    source = open_source(
        training,
        run.setting("data.format", "auto"),
        image_column=run.setting("data.image_column"),
        caption_column=run.setting("data.caption_column"),
        caption_template=template,
    )
    return source, f"training images of {training}, which the model has seen"


def _own_quiz(
    run: RunFiles, source: Source, numbers: list[int], captions: list[tuple[str, ...]]
) -> Quiz:
    """Class names where the records have labels, captions where they do not."""
    images = list(range(min(SHOWN_IMAGES, len(numbers))))
    how = f"{len(images)} images {DRAWN}"
    labels = _labels(run, source, [numbers[i] for i in images])
    if labels is not None:
        candidates, truths = labels
        for name in (run.setting("evaluation.templates", "openai"), "openai_simple", "photo"):
            templates = get_templates(name)
            if len(templates) * len(candidates) <= MAX_PROMPTS:
                break
        lead = (
            f"{how}; the model chooses among {len(candidates):,} class names (templates: {name})."
        )
        return Quiz("What is this?", lead, images, candidates, truths, templates)
    truths = [frozenset(captions[i]) for i in images]
    # Those of the shown images first, so that the right one is always among them.
    own = list(dict.fromkeys(text for i in images for text in captions[i]))
    rest = [text for texts in captions[len(images) :] for text in texts]
    candidates = list(dict.fromkeys([*own, *rest]))[: max(MAX_CANDIDATES, len(own))]
    lead = f"{how}; the model chooses among {len(candidates):,} captions."
    return Quiz("Which caption fits?", lead, images, candidates, truths, get_templates("none"))


def _labels(
    run: RunFiles, source: Source, shown: list[int]
) -> tuple[list[str], list[frozenset[str]]] | None:
    """All class names and those of the shown records; None where the records have no labels."""
    key = run.setting("evaluation.label_key", "class")
    if any(source.metadata(index).get(key) is None for index in shown):
        return None
    labels = [str(source.metadata(index)[key]) for index in shown]
    file = run.setting("evaluation.classnames")
    if file:
        names = list(read_classnames(file))
    else:
        read: Iterable[int] = range(len(source))
        if len(source) > MAX_LABELS_READ:
            read = {*_draw(5, MAX_LABELS_READ, len(source)), *shown}
        found = {source.metadata(index).get(key) for index in read} - {None}
        names = sorted({str(label) for label in found})
    if all(label.isdigit() for label in labels):
        if not file:
            return None  # numbers without names say nothing to a text tower
        if max(int(label) for label in labels) >= len(names):
            raise UserError(f"{file}: has {len(names)} names, but a label is larger")
        return names, [frozenset({names[int(label)]}) for label in labels]
    return names, [frozenset({label}) for label in labels]
