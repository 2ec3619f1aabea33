"""Sections of the page that query the model: classification, search, similarity."""

import functools
from collections.abc import Callable

import numpy as np

from clip_jax.report import page
from clip_jax.report.examples import DRAWN, Gallery, Quiz, open_gallery
from clip_jax.report.inputs import RunFiles

TOP_LABELS = 5
TOP_IMAGES = 8

Guard = Callable[[str, Callable[[], str]], str]  # (title, function that builds it) -> the section


def gallery_sections(run: RunFiles, guard: Guard) -> list[str]:
    """Sections on classification, search and similarity for the run's images."""
    opened: list[tuple[Gallery, np.ndarray]] = []

    def ask() -> str:
        gallery = open_gallery(run, run.clip.transform)
        opened.append((gallery, run.clip.encode_image(gallery.pixels)))
        return ""

    reason = guard("Images", ask)
    if not opened:
        return [reason]
    gallery, image_embeds = opened[0]
    return [
        *(
            guard(quiz.title, functools.partial(_quiz_section, run, gallery, quiz))
            for quiz in gallery.quizzes
        ),
        guard("Search by text", lambda: _search_section(run, gallery, image_embeds)),
        guard("Similarity", lambda: _similarity_section(run, gallery, image_embeds)),
    ]


def _quiz_section(run: RunFiles, gallery: Gallery, quiz: Quiz) -> str:
    pixels = gallery.pixels[quiz.images]
    probabilities = run.clip.classify(pixels, quiz.candidates, quiz.templates)
    cards, right = [], 0
    for image, row, truth in zip(pixels, probabilities, quiz.truths, strict=True):
        order = np.argsort(-row, kind="stable")
        right += quiz.candidates[order[0]] in truth
        cards.append(_guess_card(image, row, order, quiz.candidates, truth))
    origin = gallery.origin[:1].upper() + gallery.origin[1:]
    lead = f"{origin}: {quiz.lead} {right} of {len(cards)} are right."
    return page.section(quiz.title, lead, page.grid("guesses", cards))


def _guess_card(
    image: np.ndarray,
    probabilities: np.ndarray,
    order: np.ndarray,
    candidates: list[str],
    truth: frozenset[str],
) -> str:
    """A picture with its most probable labels, and the true one below if it is not among them."""
    bars = []
    for index in order[:TOP_LABELS]:
        share = float(probabilities[index])
        kind = ' class="true"' if candidates[index] in truth else ""
        bars.append(
            f'<li{kind}><i style="width:{100 * share:.1f}%"></i>'
            f"<span>{page.text(page.short(candidates[index]))}</span>"
            f"<span>{100 * share:.1f} %</span></li>"
        )
    ranks = [rank for rank, index in enumerate(order) if candidates[index] in truth]
    name = page.short(" / ".join(sorted(truth)))
    if ranks and ranks[0] == 0:
        verdict, note = '<p class="verdict is-right">✓ right</p>', ""
    else:
        verdict, note = '<p class="verdict is-wrong">✗ wrong</p>', ""
        if not ranks:
            note = f"{name}: not among the labels"
        elif ranks[0] >= TOP_LABELS:
            note = f"{name}: number {ranks[0] + 1:,} of {len(order):,}"
    below = (
        f'<p class="truth"><span class="soft">True label</span> {page.text(note)}</p>'
        if note
        else ""
    )
    bars_html = "\n".join(bars)
    return (
        f'<div class="card guess"><div>{page.picture(image, name)}{verdict}</div>\n'
        f"<ol>{bars_html}</ol>{below}</div>"
    )


def _search_section(run: RunFiles, gallery: Gallery, image_embeds: np.ndarray) -> str:
    text_embeds = run.clip.encode_text(gallery.queries)
    known = {caption for captions in gallery.captions for caption in captions}
    cards = []
    for query, embed in zip(gallery.queries, text_embeds, strict=True):
        scores = image_embeds @ embed
        results = []
        for index in np.argsort(-scores, kind="stable")[:TOP_IMAGES]:
            captions = gallery.captions[index]
            kind = ' class="hit"' if query in captions else ""
            caption = page.text(page.short(captions[0]))
            results.append(
                f"<li{kind}>{page.picture(gallery.pixels[index], page.short(captions[0]))}"
                f'<b>{scores[index]:.2f}</b><span title="{caption}">{caption}</span></li>'
            )
        items = "\n".join(results)
        unknown = "" if query in known else ' <span class="soft">(no image has this caption)</span>'
        cards.append(
            f'<div class="card query"><h3>“{page.text(page.short(query))}”{unknown}</h3>\n'
            f'<ol class="results">{items}</ol></div>'
        )
    lead = (
        f"The best {TOP_IMAGES} of {len(gallery.pixels):,} {gallery.origin}, with their cosine "
        f"similarity. {gallery.query_note} Green: the image's own caption is the query."
    )
    return page.section("Search by text", lead, "\n".join(cards))


def _similarity_section(run: RunFiles, gallery: Gallery, image_embeds: np.ndarray) -> str:
    captions = [gallery.captions[i][0] for i in gallery.pairs]
    cosine_TI = run.clip.encode_text(captions) @ image_embeds[gallery.pairs].T
    low, high = float(cosine_TI.min()), float(cosine_TI.max())
    span = max(high - low, 1e-6)
    heads = "".join(
        f"<th>{page.picture(gallery.pixels[i], page.short(caption))}</th>"
        for i, caption in zip(gallery.pairs, captions, strict=True)
    )
    lines = []
    for row, caption in enumerate(captions):
        cells = "".join(
            f"<td{page.css_class('pair', row == column)} "
            # It is half transparent, so that the number stays readable in both themes.
            f'style="background:rgba(var(--heat),{0.03 + 0.55 * ((value - low) / span) ** 2:.2f})">'
            f"{value:.2f}</td>"
            for column, value in enumerate(cosine_TI[row])
        )
        lines.append(f"<tr><th>{page.text(page.short(caption))}</th>{cells}</tr>")
    body = "\n".join(lines)
    lead = (
        f"Cosine of {len(captions)} captions with their images, {DRAWN}; outlined: the pairs that "
        "belong together, which should be the strongest of their row and column."
    )
    table = (
        f'<div class="card scroll"><table class="heat"><thead><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
    return page.section("Similarity", lead, table)
