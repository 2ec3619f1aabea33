"""Page of `inspect`: tiles, samples, histograms, unusable records."""

from collections import Counter
from collections.abc import Iterable, Iterator

from clip_jax.dataset_tools.inspect.findings import Inspection, Shown
from clip_jax.dataset_tools.inspect.histograms import Histogram, draw_histogram
from clip_jax.dataset_tools.inspect.sections import duplicates_section, throughput_section
from clip_jax.dataset_tools.inspect.table import table
from clip_jax.dataset_tools.inspect.token_lengths import LONGEST
from clip_jax.report import page
from clip_jax.report.charts import DARK, LIGHT

_EXAMPLES = 3  # per kind of unusable record
_SHOWN_TEXT = 200  # characters per caption
_IN_THE_CARD = "grid-template-columns:132px 1fr"


def build_page(inspection: Inspection) -> str:
    """The whole page as HTML."""
    parts = [
        _header(inspection),
        _samples(inspection),
        _histograms(inspection),
        _unusable(inspection),
        *duplicates_section(inspection),
        throughput_section(inspection),
        "<footer>Written by clip_jax; this page loads nothing from elsewhere.</footer>",
    ]
    return page.document(f"clip_jax data: {inspection.title}", "\n".join(parts))


def key_figures(inspection: Inspection) -> list[tuple[str, str]]:
    """(value, label) of the tiles, also printed in the terminal."""
    survey = inspection.survey
    figures = [
        (f"{inspection.records:,}", "samples with a caption"),
        (f"{inspection.kinds.total():,}", "samples that cannot be used"),
        (f"{len(survey.captions()):,}", "captions looked at"),
        (f"{100 * inspection.share_over_context:.1f} %", f"over {inspection.context} tokens"),
        (f"{_copies(inspection):,}", "exact duplicates"),
        (f"{len(inspection.near):,}", "groups of near duplicates"),
    ]
    if inspection.throughput is not None:
        figures.append((f"{inspection.throughput.whole:,.0f}", "images/s a core"))
        figures.append((inspection.throughput.bottleneck, "bottleneck"))
    return figures


def _copies(inspection: Inspection) -> int:
    """Number of images with the bytes of an earlier one."""
    return sum(len(group.members) - 1 for group in inspection.exact)


def _header(inspection: Inspection) -> str:
    survey = inspection.survey
    if survey.looked_at < inspection.records:
        lead = (
            f"Looked at were {survey.looked_at:,} of the {inspection.records:,} samples, at equal"
            " distances; shares and duplicates are of those. A duplicate whose twin was not looked"
            " at is not seen: --limit looks at more."
        )
    else:
        lead = f"All {inspection.records:,} samples were looked at."
    formats = Counter(fact.format for fact in survey.facts)
    kinds = ", ".join(f"{count:,} {name}" for name, count in formats.most_common())
    total = sum(fact.size_bytes for fact in survey.facts)
    facts = [
        *inspection.about,
        ("images", kinds or "none"),
        ("bytes of images looked at", f"{total / 1e6:,.1f} MB"),
    ]
    tiles = [page.tile(value, label) for value, label in key_figures(inspection)]
    return (
        f"<header>\n<h1>{page.text(inspection.title)}</h1>\n"
        f'<p class="lead">{page.text(lead)}</p>\n{page.tiles(tiles)}\n</header>\n'
        f'<section>\n<h2>Data</h2>\n<div class="card">{page.facts(facts)}</div>\n</section>'
    )


def _samples(inspection: Inspection) -> str:
    title = "Samples as the model sees them"
    if not inspection.samples:
        return page.left_out(title, "no sample is shown.")
    cut = sum(shown.is_cut for shown in inspection.samples)
    lead = (
        f"{len(inspection.samples)} samples after the crop of training, with their tokens turned"
        f" back into text. Cut at {inspection.context} tokens: {cut}. Grey: the caption as it is"
        " stored, where it differs."
    )
    return page.section(title, lead, page.grid("guesses", map(_sample_card, inspection.samples)))


def _sample_card(shown: Shown) -> str:
    seen, stored = page.short(shown.seen, _SHOWN_TEXT), page.short(shown.caption, _SHOWN_TEXT)
    lines = [f'<p style="overflow-wrap:anywhere;margin:0 0 6px">{page.text(seen)}</p>']
    if " ".join(shown.caption.split()) != shown.seen.strip():
        lines.append(f'<p class="soft truth">{page.text(stored)}</p>')
    if shown.alternatives > 1:
        lines.append(f'<p class="soft truth">one of {shown.alternatives} captions</p>')
    verdict = (
        f'<p class="verdict is-wrong">✂ cut: {_count(shown.tokens)} tokens of {shown.context}</p>'
        if shown.is_cut
        else f'<p class="verdict soft">{shown.tokens:,} tokens</p>'
    )
    text = "\n".join(lines)
    return (
        f'<div class="card guess" style="{_IN_THE_CARD}" title="{page.text(shown.key)}">'
        f"<div>{page.picture(shown.pixels, seen)}{verdict}</div>\n<div>{text}</div></div>"
    )


def _count(tokens: int) -> str:
    return f"{tokens:,}" if tokens < LONGEST else f"{LONGEST:,} or more"


def _histograms(inspection: Inspection) -> str:
    facts = inspection.survey.facts
    title = "Sizes and lengths"
    if not facts:
        return page.left_out(title, "no sample could be read.")
    words = [len(caption.split()) for caption in inspection.survey.captions()]
    over = 100 * inspection.share_over_context
    charts = [
        Histogram("width", [fact.width for fact in facts], "pixels"),
        Histogram("height", [fact.height for fact in facts], "pixels"),
        Histogram(
            "aspect", [fact.width / fact.height for fact in facts], "width / height",
            (1.0, "square"), whole=False,
        ),
        Histogram(
            "image size", [fact.size_bytes / 1000 for fact in facts], "thousand bytes", whole=False
        ),
        Histogram("caption length in words", words, "words"),
        Histogram(
            "caption length in tokens",
            inspection.token_counts.tolist(),
            "tokens",
            (inspection.context, f"context: {over:.1f} % are longer"),
        ),
    ]  # fmt: skip
    cards = [
        f'<div class="card"><h3>{page.text(chart.title)}</h3>\n'
        + page.themed_picture(
            draw_histogram(chart, LIGHT), draw_histogram(chart, DARK), f"histogram: {chart.title}"
        )
        + f'<p class="soft truth">{page.text(chart.summary())}</p></div>'
        for chart in charts
    ]
    lead = (
        f"Of {len(facts):,} images and {len(words):,} captions. {over:.1f} % of the captions have"
        f" more than {inspection.context} tokens, special ones included, and are cut there."
    )
    return page.section(title, lead, page.grid("charts", cards))


def _unusable(inspection: Inspection) -> str:
    title = "What cannot be used"
    if not inspection.kinds:
        return page.section(title, "Every sample that was looked at can be used.", "")
    found = Counter(sample.kind for sample in inspection.survey.bad)
    rows = [
        [kind, f"{count - found[kind]:,}", f"{found[kind]:,}"]
        for kind, count in inspection.kinds.most_common()
    ]
    when_opened = (
        [key, drop.kind, drop.position or "", drop.reason]
        for key, drop in inspection.dropped.items()
    )
    when_looked_at = (
        [sample.key, sample.kind, sample.position, sample.reason]
        for sample in inspection.survey.bad
    )
    examples = [*_first_of_each(when_looked_at), *_first_of_each(when_opened)]
    lead = (
        f"{inspection.dropped_total:,} samples were left out when the data was opened, and"
        f" {len(inspection.survey.bad):,} of the {inspection.survey.looked_at:,} looked at cannot"
        " be read or decoded, or a rule leaves them out. So does training, and counts them;"
        " “verify” lists all."
    )
    counts = table(["reason", "left out when opened", "of those looked at"], rows)
    listed = table(["sample", "reason", "where", "what is wrong"], examples, texts=4)
    return page.section(title, lead, f"{counts}\n<p></p>\n{listed}")


def _first_of_each(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yields the first rows of each kind; the kind is the second column."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row[1]] += 1
        if seen[row[1]] <= _EXAMPLES:
            yield row
