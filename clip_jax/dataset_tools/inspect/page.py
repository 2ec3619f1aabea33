"""Page of `inspect`: its figures, and a section for each question about the data."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from clip_jax.data.records import Source
from clip_jax.dataset_tools.inspect.as_trained import Loader
from clip_jax.dataset_tools.inspect.duplicates import (
    MAX_DISTANCE,
    Group,
    exact_groups,
    near_groups,
    repeated_captions,
)
from clip_jax.dataset_tools.inspect.survey import Facts, Survey
from clip_jax.dataset_tools.inspect.throughput import Throughput, measure
from clip_jax.dataset_tools.token_lengths import LONGEST, token_lengths
from clip_jax.dataset_tools.workers import evenly
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import decode
from clip_jax.report.charts import Histogram
from clip_jax.report.page import Section, render, short

_GROUPS = 8  # duplicate groups shown with pictures
_MEMBERS = 4  # pictures per group
_EXAMPLES = 3  # per kind of unusable record
_CAPTIONS = 12  # repeated ones listed
_SHOWN_TEXT = 200  # characters per caption


def build_page(
    title: str,
    source: Source,
    found: Survey,
    loader: Loader,
    *,
    about: list[tuple[str, str]],
    samples: int,
) -> tuple[str, list[tuple[str, str]]]:
    """(the page as HTML, its figures with their labels); reads the shown samples again.

    Args:
      title: the path, as given.
      about: (name, value) facts on the data.
      samples: number shown.
    """
    facts, captions = found.facts, found.captions()
    counts = token_lengths(loader.tokenizer, captions)
    context = loader.tokenizer.context_length
    over = f"{100 * np.mean(counts > context):.1f} %"
    kinds = source.dropped.counts + found.kinds()
    exact, near = exact_groups(facts), near_groups(facts)
    speed = measure(source, loader, [fact.index for fact in facts])
    figures = [
        (f"{len(source):,}", "samples with a caption"),
        (f"{kinds.total():,}", "samples that cannot be used"),
        (f"{len(captions):,}", "captions looked at"),
        (over, f"over {context} tokens"),
        (f"{sum(len(group.members) - 1 for group in exact):,}", "exact duplicates"),
        (f"{len(near):,}", "groups of near duplicates"),
        (f"{speed.whole:,.0f}", "images/s a core"),
        (speed.bottleneck, "bottleneck"),
    ]
    lead = f"All {len(source):,} samples were looked at."
    if found.looked_at < len(source):
        lead = (
            f"Looked at were {found.looked_at:,} of the {len(source):,} samples, at equal"
            " distances; shares and duplicates are of those. A duplicate whose twin was not looked"
            " at is not seen: --limit looks at more."
        )
    alike = (
        f"Images whose 64-bit difference hashes differ by at most {MAX_DISTANCE} bits:"
        " {}. Plain drawings may be taken for one another. The hash, under each image, is what a"
        " list of images to leave out has."
    )
    page = render(
        name=f"clip_jax data: {title}",
        title=title,
        about=lead,
        figures=figures,
        sections=[
            Section("Data", "facts", body=(about + loader.about() + _about_images(facts), "")),
            _samples(source, facts, loader, samples),
            _sizes(facts, captions, counts, f"{over} of the captions have more than {context}"),
            _unusable(source, found, kinds),
            _groups(source, "Exact duplicates", "Images with equal bytes: {}.", exact, len(facts)),
            _groups(source, "Near duplicates", alike, near, len(facts)),
            _repeated(captions),
            _throughput(speed),
        ],
    )
    return page, figures


def _about_images(facts: Sequence[Facts]) -> list[tuple[str, str]]:
    formats = Counter(fact.format for fact in facts)
    kinds = ", ".join(f"{count:,} {name}" for name, count in formats.most_common())
    total = sum(fact.size_bytes for fact in facts)
    return [("images", kinds or "none"), ("bytes of images looked at", f"{total / 1e6:,.1f} MB")]


def _samples(source: Source, facts: Sequence[Facts], loader: Loader, count: int) -> Section:
    title = "Samples as the model sees them"
    context, cards, cut = loader.tokenizer.context_length, [], 0
    for fact in (facts[number] for number in evenly(len(facts), count)):
        try:
            pixels, caption = loader.sample(source[fact.index], fact.index)
        except DecodeError:  # changed since it was looked at
            continue
        seen = loader.tokenizer.decode(loader.tokens([caption])[0])
        tokens = int(token_lengths(loader.tokenizer, [caption])[0])
        cut += tokens > context
        notes = [] if " ".join(caption.split()) == seen.strip() else [short(caption, _SHOWN_TEXT)]
        if len(fact.captions) > 1:
            notes.append(f"one of {len(fact.captions)} captions")
        number = f"{tokens:,}" if tokens < LONGEST else f"{LONGEST:,} or more"
        cards.append(
            {
                "key": fact.key,
                "image": pixels,
                "text": short(seen, _SHOWN_TEXT),
                "notes": notes,
                "is_cut": tokens > context,
                "tokens": f"cut: {number} tokens of {context}"
                if tokens > context
                else f"{number} tokens",
            }
        )
    if not cards:
        return Section(title, why="no sample is shown.")
    lead = (
        f"{len(cards)} samples after the crop of training, with their tokens turned back into text."
        f" Cut at {context} tokens: {cut}. Grey: the stored caption, if it differs."
    )
    return Section(title, "samples", lead, cards)


def _sizes(
    facts: Sequence[Facts], captions: Sequence[str], counts: np.ndarray, over: str
) -> Section:
    ratios = [fact.width / fact.height for fact in facts]
    sizes = [fact.size_bytes / 1000 for fact in facts]
    charts = [
        Histogram("width", [fact.width for fact in facts], "pixels"),
        Histogram("height", [fact.height for fact in facts], "pixels"),
        Histogram("aspect", ratios, "width / height", is_whole=False),
        Histogram("image size", sizes, "thousand bytes", is_whole=False),
        Histogram("caption length in words", [len(text.split()) for text in captions], "words"),
        Histogram("caption length in tokens", counts.tolist(), "tokens"),
    ]
    lead = (
        f"{len(facts):,} images and {len(captions):,} captions. {over} tokens, special ones"
        " included, and are cut there."
    )
    return Section("Sizes and lengths", "charts", lead, charts)


def _unusable(source: Source, found: Survey, kinds: Counter[str]) -> Section:
    title = "What cannot be used"
    if not kinds:
        return Section(title, "lists", "Every sample that was looked at can be used.", [])
    of_survey = found.kinds()
    counts = [
        (kind, f"{count - of_survey[kind]:,}", f"{of_survey[kind]:,}")
        for kind, count in kinds.most_common()
    ]
    listed = source.dropped.listed
    dropped = [(key, drop.kind, drop.position or "", drop.reason) for key, drop in listed]
    examples = [*_first_of_each(found.bad), *_first_of_each(dropped)]
    lead = (
        f"{source.dropped.total:,} samples were left out when the data was opened, and"
        f" {len(found.bad):,} of the {found.looked_at:,} looked at cannot be read or decoded, or a"
        " rule leaves them out. So does training, and counts them; “verify” lists all."
    )
    return Section(
        title,
        "lists",
        lead,
        [
            (1, ["reason", "left out when opened", "of those looked at"], counts),
            (4, ["sample", "reason", "where", "what is wrong"], examples),
        ],
    )


def _first_of_each(rows: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yields the first rows of each kind; the kind is the second column."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row[1]] += 1
        if seen[row[1]] <= _EXAMPLES:
            yield row


def _groups(
    source: Source, title: str, lead: str, groups: Sequence[Group], looked_at: int
) -> Section:
    """A section on duplicates; {} in the lead becomes their number."""
    cards = []
    for group in groups[:_GROUPS]:
        pictures = []
        for fact in group.members[:_MEMBERS]:
            try:
                pictures.append((fact, np.asarray(decode(source[fact.index].image))))
            except DecodeError:  # changed since it was looked at
                continue
        name = f"{len(group.members)} images"
        if any(fact.digest != group.members[0].digest for fact in group.members):
            name += f", the closest {group.distance} of 64 bits apart"
        if len(pictures) < len(group.members):
            name += f" ({len(group.members) - len(pictures)} not shown)"
        cards.append((name, pictures))
    number = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    images = sum(len(group.members) for group in groups)
    shown = f"; the first {len(cards)} are shown" if len(groups) > len(cards) else ""
    return Section(
        title, "groups", lead.format(f"{images:,} of {looked_at:,}, in {number}{shown}"), cards
    )


def _repeated(captions: Sequence[str]) -> Section:
    title, repeated = "Repeated captions", repeated_captions(captions)
    if not repeated:
        return Section(title, "lists", f"None of {len(captions):,} captions occurs twice.", [])
    count = sum(number for _, number in repeated)
    lead = (
        f"{count:,} of {len(captions):,} captions ({100 * count / len(captions):.1f} %) are shared"
        f" by several samples; {len(repeated):,} different ones. In a batch the contrastive loss"
        " takes such pairs for negatives of one another."
    )
    rows = [(caption, f"{number:,}") for caption, number in repeated[:_CAPTIONS]]
    return Section(title, "lists", lead, [(1, ["caption", "times"], rows)])


def _throughput(speed: Throughput) -> Section:
    rows = [(name, f"{rate:,.0f}", f"{100 * share:.1f} %") for name, rate, share in speed.rows()]
    cores = os.cpu_count() or 1
    lead = (
        f"One thread, {speed.records:,} samples in random order, files probably in memory already."
        f" The bottleneck is “{speed.bottleneck}”. This machine's {cores} cores would give"
        f" {speed.whole * cores:,.0f} images/s if each gave as many."
    )
    titles = ["stage", "images/s a core", "share of the time"]
    return Section("Throughput", "lists", lead, [(1, titles, rows)])
