"""Sections of the page that query the model: classification, search, similarity."""

import functools
from typing import Any

import numpy as np

from clip_jax.report.examples import DRAWN, Gallery, Quiz, open_gallery
from clip_jax.report.inputs import RunFiles
from clip_jax.report.page import Section, made_or_left_out, short

TOP_LABELS = 5
TOP_IMAGES = 8


def gallery_sections(run: RunFiles) -> list[Section]:
    """Sections on classification, search and similarity for the run's images."""

    def embedded() -> tuple[str, tuple[Gallery, np.ndarray]]:
        gallery = open_gallery(run, run.clip.transform)
        return "", (gallery, run.clip.encode_image(gallery.pixels))

    opened = made_or_left_out("Images", "", embedded)
    if opened.why:
        return [opened]
    gallery, embeds = opened.body
    return [
        *(
            made_or_left_out(quiz.title, "quiz", functools.partial(_quiz, run, gallery, quiz))
            for quiz in gallery.quizzes
        ),
        made_or_left_out("Search by text", "search", lambda: _search(run, gallery, embeds)),
        made_or_left_out("Similarity", "similarity", lambda: _similarity(run, gallery, embeds)),
    ]


def _quiz(run: RunFiles, gallery: Gallery, quiz: Quiz) -> tuple[str, list[dict[str, Any]]]:
    pixels = gallery.pixels[quiz.images]
    probabilities = run.clip.classify(pixels, quiz.candidates, quiz.templates)
    cards = []
    for image, row, truth in zip(pixels, probabilities, quiz.truths, strict=True):
        labels = [quiz.candidates[index] for index in np.argsort(-row, kind="stable")]
        shares = np.sort(row)[::-1].tolist()
        rank = next((rank for rank, label in enumerate(labels) if label in truth), None)
        name, note = short(" / ".join(sorted(truth))), ""
        if rank is None:
            note = f"{name}: not among the labels"
        elif rank >= TOP_LABELS:
            note = f"{name}: number {rank + 1:,} of {len(labels):,}"
        cards.append(
            {
                "image": image,
                "name": name,
                "is_right": rank == 0,
                "guesses": [
                    (label, share, label in truth)
                    for label, share in zip(labels[:TOP_LABELS], shares, strict=False)
                ],
                "note": note,
            }
        )
    right = sum(card["is_right"] for card in cards)
    origin = gallery.origin[:1].upper() + gallery.origin[1:]
    return f"{origin}: {quiz.lead} {right} of {len(cards)} are right.", cards


def _search(
    run: RunFiles, gallery: Gallery, image_embeds: np.ndarray
) -> tuple[str, list[dict[str, Any]]]:
    known = {caption for captions in gallery.captions for caption in captions}
    queries = []
    for query, embed in zip(gallery.queries, run.clip.encode_text(gallery.queries), strict=True):
        scores = image_embeds @ embed
        results = [
            {
                "image": gallery.pixels[index],
                "caption": gallery.captions[index][0],
                "score": scores[index],
                "is_hit": query in gallery.captions[index],
            }
            for index in np.argsort(-scores, kind="stable")[:TOP_IMAGES]
        ]
        queries.append({"text": query, "is_known": query in known, "results": results})
    lead = (
        f"The best {TOP_IMAGES} of {len(gallery.pixels):,} {gallery.origin}, with their cosine "
        f"similarity. {gallery.query_note} Green: the image's own caption is the query."
    )
    return lead, queries


def _similarity(
    run: RunFiles, gallery: Gallery, image_embeds: np.ndarray
) -> tuple[str, dict[str, Any]]:
    captions = [gallery.captions[index][0] for index in gallery.pairs]
    cosine_TI = run.clip.encode_text(captions) @ image_embeds[gallery.pairs].T
    low, high = float(cosine_TI.min()), float(cosine_TI.max())
    lead = (
        f"Cosine of {len(captions)} captions with their images, {DRAWN}; outlined: the pairs that "
        "belong together, which should be the strongest of their row and column."
    )
    return lead, {
        "images": gallery.pixels[gallery.pairs],
        "captions": captions,
        "cosines": cosine_TI,
        "heat": (cosine_TI - low) / max(high - low, 1e-6),
    }
