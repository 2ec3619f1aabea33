"""Choice of the report's images, labels and queries: drawn with a fixed seed, never by hand."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clip_jax.data.records import Source, split_of
from clip_jax.data.sources import glyphs
from clip_jax.data.sources.refine import open_refined
from clip_jax.data.task_data import TaskData
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.labels import UNLABELLED, LabelledRecords, read_labels
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.tasks import open_labelled
from clip_jax.images.transform import ImageTransform
from clip_jax.report.inputs import RunFiles
from clip_jax.training.config import build_config

SEED = 0
SHOWN_IMAGES = 12  # per quiz
SHOWN_PAIRS = 8  # in the similarity table
DRAWN_QUERIES = 3
MAX_GALLERY = 500  # images to search, unless the data are glyphs
MAX_CANDIDATES = 1000  # captions from which the model chooses
MAX_PROMPTS = 2000  # class names × templates; above it fewer templates are used
MAX_LABELS_READ = 50_000  # records whose labels are read to collect the class names

GLYPH_QUERIES = ("greek small letter omega", "rightwards arrow", "roman numeral seven")
DRAWN = f"drawn at random with seed {SEED}"


@dataclasses.dataclass(frozen=True)
class Quiz:
    """Images to be labelled, and the labels to choose from."""

    title: str
    lead: str
    images: list[int]  # indices in the gallery
    candidates: list[str]
    truths: list[frozenset[str]]  # correct labels of each image
    templates: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images as the model sees them, with the report's questions about them."""

    origin: str  # for example "held-out images of photos/test"
    pixels: np.ndarray  # uint8 (N, S, S, 3)
    captions: list[tuple[str, ...]]
    quizzes: list[Quiz]
    queries: list[str]
    query_note: str
    pairs: list[int]  # images whose captions all differ


def open_gallery(run: RunFiles, transform: ImageTransform) -> Gallery:
    """The images for a run: glyphs of an unseen typeface, or the user's own.

    Raises `UserError` if the data cannot be opened or no image can be decoded.
    """
    if run.setting("data.format") == "glyphs":
        return _glyph_gallery(str(run.setting("data.path", "train")), transform)
    return _own_gallery(run, transform)


def _draw(purpose: int, count: int, total: int) -> list[int]:
    """Distinct numbers below `total`, drawn independently for each purpose."""
    rng = np.random.default_rng([SEED, purpose])
    return [int(i) for i in rng.choice(total, size=min(count, total), replace=False)]


def _glyph_gallery(trained_on: str, transform: ImageTransform) -> Gallery:
    # A run that holds out a typeface to choose settings must not be shown on the test.
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
    data, source, origin = _open_own(run)
    numbers, pixels = [], []
    reasons = ""
    # More are drawn than needed, as some may not decode.
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
    labels = _labels(data, source, numbers)
    if labels is not None:  # images to classify need no captions
        names = [tuple(truth) for truth in labels[1]]
        captions = [found or name for found, name in zip(captions, names, strict=True)]
    if not all(captions):
        raise UserError(f"some of the {origin} have neither a caption nor a label")
    queries = list(dict.fromkeys(texts[0] for texts in captions))[: 2 * DRAWN_QUERIES]
    distinct: dict[str, int] = {}
    for image, texts in enumerate(captions):
        distinct.setdefault(texts[0], image)
    return Gallery(
        origin=origin,
        pixels=np.stack(pixels),
        captions=captions,
        quizzes=[_own_quiz(data, labels, captions)],
        queries=queries,
        query_note=f"The queries are captions of these images, {DRAWN}.",
        pairs=list(distinct.values())[:SHOWN_PAIRS],
    )


def _open_own(run: RunFiles) -> tuple[TaskData, Source, str]:
    """The user's images, preferably those held out for evaluation, and a description of them."""
    config = build_config(run.config)
    evaluations = [each for each in config.evaluations if each.data.path]
    evaluations.sort(key=lambda each: each.task != "zero_shot")  # whose labels make a quiz
    data = evaluations[0].task_data() if evaluations else TaskData()
    training = config.data
    if data.path and data.path != training.path:
        return data, open_labelled(data), f"held-out images of {data.path}"
    seen = open_refined(training, label_column=data.label_key)
    if data.path:
        source = open_labelled(data)
        if split_of(source) != split_of(seen):
            return data, source, f"held-out images of {data.path}"
    data = dataclasses.replace(data, path=training.path)
    return data, seen, f"training images of {training.path}, which the model has seen"


def _own_quiz(
    data: TaskData,
    labels: tuple[list[str], list[frozenset[str]]] | None,
    captions: list[tuple[str, ...]],
) -> Quiz:
    """A quiz of class names if the records have labels, else of captions."""
    shown = range(len(captions)) if labels is None else [i for i, x in enumerate(labels[1]) if x]
    images = list(shown[:SHOWN_IMAGES])
    how = f"{len(images)} images {DRAWN}"
    if labels is not None:
        candidates, truths = labels[0], [labels[1][i] for i in images]
        for name in (data.templates, "openai_simple", "photo"):
            templates = get_templates(name)
            if len(templates) * len(candidates) <= MAX_PROMPTS:
                break
        lead = (
            f"{how}; the model chooses among {len(candidates):,} class names (templates: {name})."
        )
        return Quiz("What is this?", lead, images, candidates, truths, templates)
    truths = [frozenset(captions[i]) for i in images]
    # The shown images' captions come first, so that the right one is always a candidate.
    own = list(dict.fromkeys(text for i in images for text in captions[i]))
    rest = [text for texts in captions[len(images) :] for text in texts]
    candidates = list(dict.fromkeys([*own, *rest]))[: max(MAX_CANDIDATES, len(own))]
    lead = f"{how}; the model chooses among {len(candidates):,} captions."
    return Quiz("Which caption fits?", lead, images, candidates, truths, get_templates("none"))


class _Some(LabelledRecords):
    """A subset of a source's records, for reading their labels."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self._source = source
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def metadata(self, index: int) -> dict[str, Any]:
        return self._source.metadata(self._numbers[index])

    def key(self, index: int) -> str:
        return self._source.key(self._numbers[index])


def _labels(
    data: TaskData, source: Source, shown: list[int]
) -> tuple[list[str], list[frozenset[str]]] | None:
    """(all class names, those of each shown record); None if the records have no labels."""
    others: Iterable[int] = range(len(source))
    if len(source) > MAX_LABELS_READ:
        others = _draw(5, MAX_LABELS_READ, len(source))
    read = list(dict.fromkeys([*shown, *others]))
    try:
        labels = read_labels(_Some(source, read), data)
    except UserError:
        if data.classnames is not None:
            raise
        return None  # no labels, or numbers without names, which mean nothing to a text tower
    numbers = labels.numbers[: len(shown)].tolist()
    if set(numbers) == {UNLABELLED}:
        return None
    return list(labels.names), [
        frozenset() if number == UNLABELLED else frozenset({labels.names[number]})
        for number in numbers
    ]
