"""Collected findings for the page of `inspect`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.data.records import Drop, Source
from clip_jax.dataset_tools.bad_samples import count_kinds
from clip_jax.dataset_tools.inspect.duplicates import (
    Group,
    exact_groups,
    near_groups,
    repeated_captions,
)
from clip_jax.dataset_tools.inspect.survey import Facts, Survey, evenly
from clip_jax.dataset_tools.inspect.throughput import Loader, Throughput, chip_rates, cores, measure
from clip_jax.dataset_tools.inspect.token_lengths import token_lengths
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import decode

_GROUPS = 8  # duplicate groups shown with pictures
_MEMBERS = 4  # pictures per group


@dataclass(frozen=True)
class Shown:
    """A sample as training sees it."""

    key: str
    pixels: np.ndarray  # uint8 (S, S, 3)
    caption: str  # as stored
    seen: str  # its tokens as text
    tokens: int  # before the cut to `context`
    context: int
    alternatives: int  # number of its captions

    @property
    def is_cut(self) -> bool:
        return self.tokens > self.context


@dataclass(frozen=True)
class ShownGroup:
    """A group of similar images, with its pictures."""

    group: Group
    pictures: tuple[tuple[Facts, np.ndarray], ...]  # upright RGB


@dataclass(frozen=True)
class Inspection:
    """Findings on the surveyed records."""

    title: str  # the path, as given
    about: list[tuple[str, str]]
    records: int  # in the source
    survey: Survey
    dropped: dict[str, Drop]  # at the opening of the source: the first, by key
    kinds: Counter[str]  # unusable records, at opening and in the survey
    dropped_total: int
    token_counts: np.ndarray  # int (captions,)
    context: int
    samples: list[Shown]
    exact: list[Group]
    exact_shown: list[ShownGroup]
    near: list[Group]
    near_shown: list[ShownGroup]
    captions: list[tuple[str, int]]  # repeated ones, with counts
    throughput: Throughput | None
    cores: int
    chips: dict[str, float]  # architecture -> samples/s of one chip

    @property
    def share_over_context(self) -> float:
        return float(np.mean(self.token_counts > self.context)) if len(self.token_counts) else 0.0


def gather(
    source: Source,
    found: Survey,
    loader: Loader,
    *,
    title: str,
    about: list[tuple[str, str]],
    samples: int,
    seed: int,
    models: Sequence[str],
) -> Inspection:
    """The findings of a survey; reads the shown samples again.

    Args:
      samples: number shown.
      seed: for their crops.
      models: architectures whose chips the host could feed.
    """
    exact, near = exact_groups(found.facts), near_groups(found.facts)
    kinds = Counter(source.dropped.counts)
    kinds.update(count_kinds(found.bad))
    chosen = [found.facts[number] for number in evenly(len(found.facts), samples)]
    indices = [fact.index for fact in found.facts]
    return Inspection(
        title=title,
        about=about,
        records=len(source),
        survey=found,
        dropped=dict(source.dropped.listed),
        kinds=kinds,
        dropped_total=source.dropped.total,
        token_counts=token_lengths(loader.tokenizer, found.captions()),
        context=loader.tokenizer.context_length,
        samples=[shown for fact in chosen if (shown := _as_seen(source, fact, loader, seed))],
        exact=exact,
        exact_shown=[_with_pictures(source, group) for group in exact[:_GROUPS]],
        near=near,
        near_shown=[_with_pictures(source, group) for group in near[:_GROUPS]],
        captions=repeated_captions(found.captions()),
        throughput=measure(source, loader, indices) if indices else None,
        cores=cores(),
        chips=chip_rates(models),
    )


def _as_seen(source: Source, fact: Facts, loader: Loader, seed: int) -> Shown | None:
    try:
        pixels, caption = loader.sample(source[fact.index], seed + fact.index)
    except DecodeError:  # changed since it was looked at
        return None
    return Shown(
        key=fact.key,
        pixels=pixels,
        caption=caption,
        seen=loader.tokenizer.decode(loader.tokens([caption])[0]),
        tokens=int(token_lengths(loader.tokenizer, [caption])[0]),
        context=loader.tokenizer.context_length,
        alternatives=len(fact.captions),
    )


def _with_pictures(source: Source, group: Group) -> ShownGroup:
    pictures = []
    for fact in group.members[:_MEMBERS]:
        try:
            pictures.append((fact, np.asarray(decode(source[fact.index].image))))
        except DecodeError:  # changed since it was looked at
            continue
    return ShownGroup(group, tuple(pictures))
