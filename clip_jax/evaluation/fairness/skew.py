"""Skew of rankings by text: which groups the images are of that come first for a concept.

Protocol: debias-vision-language (Berg et al. 2022), MaxSkew@k and NDKL averaged over 11 templates ×
29 concepts. Its default k is all images, where the order plays no role; papers report k = 1000.
"""

import functools
from collections.abc import Sequence

import numpy as np

from clip_jax.data.attribute_words import attribute_words
from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import AnyEmbedders, embed_source, embed_texts
from clip_jax.evaluation.fairness.projection import projected, text_projection
from clip_jax.evaluation.groups import NO_GROUP, group_member, read_groups
from clip_jax.evaluation.metrics.rows import mean_estimate, metrics_row
from clip_jax.evaluation.metrics.skew import max_skew, min_skew, ndkl
from clip_jax.evaluation.opening import Row, dataset_fields, open_captioned
from clip_jax.evaluation.prompts import get_classes, get_templates
from clip_jax.evaluation.zero_shot import GROUPS, METRIC

PROMPTS = "debias_vision_language"  # the published set of concepts and templates
_SEED = 0  # of the order of images with equal scores


def open_grouped(data: TaskData) -> Source:
    """Opens images with a metadata field of groups."""
    member = group_member(data.group_key)
    return open_captioned(data, needs_captions=False, label_column=member or data.group_key)


def check_grouped(source: Source, data: TaskData) -> Sequence[str]:
    """Reads groups, concepts and templates."""
    _groups(source, data)
    _prompts(data)
    if data.project_out is not None:
        attribute_words(data.project_out, "project_out")
    return ()


def _groups(source: Source, data: TaskData) -> np.ndarray:
    groups = read_groups(source, data)
    found, count = np.unique(groups[groups != NO_GROUP], return_counts=True)
    if len(found) < 2:
        raise UserError(f"group_key={data.group_key!r}: has {len(found)} groups; skew is of two")
    if data.skew_k >= count.sum():
        raise UserError(
            f"skew_k={data.skew_k}: accepted is less than the {count.sum():,} images that are in a"
            " group, for of all images the order plays no role"
        )
    return groups


def _prompts(data: TaskData) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (concepts, templates)."""
    classes = get_classes(PROMPTS if data.classnames is None else data.classnames)
    named = data.templates != TaskData.templates
    concepts = tuple(name for each in classes for name in each.names)
    return concepts, get_templates(data.templates if named else PROMPTS)


def skew(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures the skew of the rankings of all images by the prompts of each concept."""
    source = open_grouped(data)
    groups = _groups(source, data)
    concepts, templates = _prompts(data)
    images = embed_source(embedders, source, data.batch_size)
    inside = groups[images.records]
    used = inside != NO_GROUP
    prompts = [template.replace("{}", name) for name in concepts for template in templates]
    clusters = np.repeat(np.arange(len(concepts)), len(templates))
    texts = embed_texts(embedders, prompts)
    measure = functools.partial(
        skew_metrics, images.embeds[used], groups=inside[used], k=min(data.skew_k, used.sum() - 1)
    )
    values = measure(texts)
    row = metrics_row({name: mean_estimate(x, clusters) for name, x in values.items()})
    if data.project_out is not None:
        embed = functools.partial(embed_texts, embedders)
        projection = text_projection(embed, data.project_out, concepts, templates[0])
        after = measure(projected(projection, texts))
        changes = {f"{name}_projected": x for name, x in after.items()}
        changes |= {f"{name}_change": x - values[name] for name, x in after.items()}
        row |= metrics_row({name: mean_estimate(x, clusters) for name, x in changes.items()})
    samples = {f"{METRIC}{name}": x for name, x in values.items()}
    samples |= {f"{GROUPS}{name}": clusters for name in values}
    sizes = {"num_images": int(used.sum()), "num_prompts": len(prompts), "k": data.skew_k}
    sizes["num_groups"] = len(np.unique(inside[used]))
    fields = {**dataset_fields(source, data), "group_key": data.group_key}
    return [{**fields, **row, **sizes, "samples": samples}]


def skew_metrics(
    image_embeds: np.ndarray, text_embeds: np.ndarray, groups: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """Measures the ranking of N images by each of P texts: float64 (P,) by name of the metric.

    Args:
      image_embeds: float32 (N, D), rows of length 1.
      text_embeds: float32 (P, D), likewise.
      groups: int or str (N,), of which all that occur count.
      k: number of first images for MaxSkew and MinSkew.

    Returns:
      `max_skew_uniform`, `min_skew_uniform`, `ndkl_uniform`, against equal shares of all groups,
      and `max_skew_data`, …, against their shares of the images. Images of equal score are in
      random order, the same for every text.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    uniform = np.full(len(names), 1 / len(names))
    shuffled = np.random.default_rng(_SEED).permutation(len(numbers))
    embeds, numbers = image_embeds[shuffled], numbers[shuffled]
    targets = {"uniform": uniform, "data": np.bincount(numbers) / len(numbers)}
    found: dict[str, list[float]] = {}
    for text in text_embeds:
        ranked = numbers[np.argsort(-(embeds @ text), kind="stable")]
        for target, desired in targets.items():
            found.setdefault(f"max_skew_{target}", []).append(max_skew(ranked, desired, k))
            found.setdefault(f"min_skew_{target}", []).append(min_skew(ranked, desired, k))
            found.setdefault(f"ndkl_{target}", []).append(ndkl(ranked, desired))
    return {name: np.asarray(values) for name, values in found.items()}
