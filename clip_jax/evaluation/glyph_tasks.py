"""Evaluators of the glyphs that come with the package: letters by their names, and retrieval."""

import functools

import numpy as np

from clip_jax.data.sources import glyphs
from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.embeddings import AnyEmbedders, embed_source, embed_texts
from clip_jax.evaluation.opening import Row
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.retrieval_metrics import retrieval_metrics
from clip_jax.evaluation.zero_shot import evaluate_zero_shot, zero_shot_classifier


def letters(split: str, embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures zero-shot classification of the ASCII letters of a typeface by their names."""
    source = glyphs.open_glyphs(split)
    chosen = [i for i, c in enumerate(source.codepoints) if glyphs.is_ascii_letter(int(c))]
    names = [source.names[i] for i in chosen]
    images = embed_source(embedders, source, data.batch_size)
    classifier = zero_shot_classifier(
        functools.partial(embed_texts, embedders), names, get_templates("none")
    )
    labels = np.arange(len(chosen))
    metrics, samples = evaluate_zero_shot(
        images.embeds[chosen], labels, classifier, embedders.class_logits
    )
    samples |= {"records": np.asarray(chosen), "classnames": np.asarray(names)}
    return [{"dataset": f"glyphs/{split}", **metrics, "samples": samples}]


def retrieval(split: str, embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures retrieval over all glyphs of a typeface, also by whether training saw the name."""
    source = glyphs.open_glyphs(split)
    images = embed_source(embedders, source, data.batch_size)
    text_embeds = embed_texts(embedders, list(source.names))
    seen_names = set(glyphs.open_glyphs("train").names)
    seen = np.asarray([name in seen_names for name in source.names])
    rows = []
    for part, queries in (("", None), ("/seen_names", seen), ("/unseen_names", ~seen)):
        if queries is not None and not (queries.any() and (~queries).any()):
            continue  # all names of a DejaVu face are seen
        metrics, samples = retrieval_metrics(
            images.embeds,
            text_embeds,
            np.arange(len(source)),
            image_query_mask=queries,
            text_query_mask=queries,
        )
        of_text = np.arange(len(source)) if queries is None else np.flatnonzero(queries)
        samples |= {"records": images.records, "image_of_text": of_text}
        rows.append({"dataset": f"glyphs/{split}{part}", **metrics, "samples": samples})
    return rows
