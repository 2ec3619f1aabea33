"""Sections of `inspect`'s page on duplicates and speed."""

from clip_jax.dataset_tools.inspect.duplicates import MAX_DISTANCE, Group
from clip_jax.dataset_tools.inspect.findings import Inspection, ShownGroup
from clip_jax.dataset_tools.inspect.table import table
from clip_jax.dataset_tools.inspect.throughput import CHIP, DECODE, UTILISATION, Spent
from clip_jax.report import page

_CAPTIONS = 12  # repeated ones listed
_COLUMNS = "grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr))"


def duplicates_section(inspection: Inspection) -> list[str]:
    """Sections on equal images, similar images and equal captions."""
    looked_at = len(inspection.survey.facts)
    exact = sum(len(group.members) for group in inspection.exact)
    near = sum(len(group.members) for group in inspection.near)
    parts = [
        page.section(
            "Exact duplicates",
            f"Images with equal bytes: {exact:,} of {looked_at:,}, in"
            f" {_count_groups(inspection.exact)}" + _shown(inspection.exact_shown, "largest"),
            _groups(inspection.exact_shown),
        ),
        page.section(
            "Near duplicates",
            f"Images whose 64-bit difference hashes differ by at most {MAX_DISTANCE} bits: {near:,}"
            f" of {looked_at:,}, in {_count_groups(inspection.near)}"
            + _shown(inspection.near_shown, "most alike")
            + " Plain drawings may be taken for one another. The hash, under each image, is what a"
            " list of images to leave out has.",
            _groups(inspection.near_shown),
        ),
    ]
    repeated = inspection.captions
    count = sum(number for _, number in repeated)
    total = len(inspection.survey.captions())
    rows = [[caption, f"{number:,}"] for caption, number in repeated[:_CAPTIONS]]
    parts.append(
        page.section(
            "Repeated captions",
            f"{count:,} of {total:,} captions ({100 * count / max(total, 1):.1f} %) are shared by"
            f" several samples; {len(repeated):,} different ones. In a batch the contrastive loss"
            " takes such pairs for negatives of one another."
            if repeated
            else f"None of {total:,} captions occurs twice.",
            table(["caption", "times"], rows) if rows else "",
        )
    )
    return parts


def _count_groups(groups: list[Group]) -> str:
    return "1 group" if len(groups) == 1 else f"{len(groups):,} groups"


def _shown(groups: list[ShownGroup], which: str) -> str:
    """End of the sentence that counts the groups."""
    return f"; the {which} are shown ({len(groups)})." if groups else "."


def _groups(groups: list[ShownGroup]) -> str:
    """Cards with the images of each group side by side."""
    cards = []
    for shown in groups:
        items = "\n".join(
            f'<li title="{page.text(fact.key)}">{page.picture(pixels, page.short(fact.key))}'
            f"<b>{fact.width} × {fact.height}</b>"
            f"<span>{page.text(page.short(fact.captions[0], 90))}</span>"
            f"<span>{page.text(page.short(fact.key, 60))}, {fact.hash:016x}</span></li>"
            for fact, pixels in shown.pictures
        )
        more = len(shown.group.members) - len(shown.pictures)
        name = f"{len(shown.group.members)} images"
        if any(member.digest != shown.group.members[0].digest for member in shown.group.members):
            name += f", the closest {shown.group.distance} of 64 bits apart"
        cards.append(
            f'<div class="card query"><h3>{name}{f" ({more} not shown)" if more else ""}</h3>\n'
            f'<ol class="results" style="grid-template-columns:repeat(4,minmax(0,1fr))">'
            f"{items}</ol></div>"
        )
    return f'<div class="grid" style="{_COLUMNS}">\n' + "\n".join(cards) + "\n</div>"


def _of_it(spent: Spent) -> str:
    """The share of the time in which the thread had a core."""
    return f"{100 * min(spent.cpu / max(spent.wall, 1e-9), 1):.0f} %"


def throughput_section(inspection: Inspection) -> str:
    """Section on rates by stage, the bottleneck, and the chips that the host could feed."""
    measured = inspection.throughput
    if measured is None:
        return page.left_out("Throughput", "no sample could be read.")
    shares = measured.shares
    most = 100 * shares[measured.bottleneck]
    rows = [
        [
            f"{name} ← bottleneck" if name == measured.bottleneck else name,
            f"{rate:,.0f}",
            f"{100 * shares[name]:.1f} %",
            _of_it(measured.spent[name]),
        ]
        for name, rate in measured.stages.items()
    ]
    every = sum(measured.spent.values(), Spent())
    rows.append(["one after the other", f"{measured.whole:,.0f}", "100.0 %", _of_it(every)])
    host = measured.whole * inspection.cores
    chips = [
        [name, f"{rate:,.0f}", f"{host / rate:.2f}", f"{rate / measured.whole:.1f}"]
        for name, rate in inspection.chips.items()
    ]
    lead = (
        f"One thread, {measured.records:,} samples in random order, files probably in memory"
        f" already. The bottleneck is “{measured.bottleneck}”, {most:.0f} % of the"
        f" time. This machine's {inspection.cores} cores would give {host:,.0f} images/s"
        " if each gave as many."
    )
    if measured.was_busy:
        decode = _of_it(measured.spent[DECODE])
        lead += (
            f" The machine was busy with other work: decoding had the core for {decode} of its time"
            " only. An idle one is faster; look again then."
        )
    chip_lead = (
        f"Chips that this machine could feed: samples/s of one {CHIP} at an assumed"
        f" {100 * UTILISATION:.0f} % of its peak, from the arithmetic of a training step; nothing"
        " was measured on a chip."
    )
    return page.section(
        "Throughput",
        lead,
        table(["stage", "images/s a core", "share of the time", "of it CPU time"], rows)
        + f'\n<p></p><p class="lead">{page.text(chip_lead)}</p>\n'
        + table(["model", f"samples/s a {CHIP} needs", "chips fed", "cores a chip needs"], chips),
    )
