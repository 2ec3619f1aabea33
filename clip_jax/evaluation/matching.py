"""Evaluators of images and texts that belong together: retrieval, compositional problems."""

import dataclasses
from pathlib import Path

import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.associations import read_associations
from clip_jax.evaluation.embeddings import AnyEmbedders, embed_source, embed_texts
from clip_jax.evaluation.labels import UNLABELLED, read_labels
from clip_jax.evaluation.metrics.classification import jaccard_index
from clip_jax.evaluation.metrics.ranking import selection_hits
from clip_jax.evaluation.metrics.rows import metrics_row
from clip_jax.evaluation.opening import Row, dataset_fields, open_captioned, open_labelled
from clip_jax.evaluation.retrieval_metrics import image_to_image_metrics, retrieval_metrics
from clip_jax.evaluation.zero_shot import GROUPS, METRIC


def retrieval(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures recall at 1, 5, 10 both ways; a caption of several images is right for each."""
    source = open_captioned(data)
    images = embed_source(embedders, source, data.batch_size)
    captions = [source.captions(int(index)) for index in images.records]
    texts = [text for group in captions for text in group]
    image_of_text = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    metrics, samples = retrieval_metrics(
        images.embeds, embed_texts(embedders, texts), image_of_text, texts=texts
    )
    samples |= {"records": images.records, "image_of_text": image_of_text}
    return [{**dataset_fields(source, data), **metrics, "samples": samples}]


def image_to_image(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures how an image finds another one of its class among all labelled images."""
    source = open_labelled(data)
    numbers = read_labels(source, data).numbers
    images = embed_source(embedders, source, data.batch_size)
    used = numbers[images.records] != UNLABELLED
    records = images.records[used]
    metrics, samples = image_to_image_metrics(images.embeds[used], numbers[records])
    return [{**dataset_fields(source, data), **metrics, "samples": samples | {"records": records}}]


def compositional(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures how often an image's right caption is above a wrong one: captions come in pairs."""
    source = open_captioned(data)
    images = embed_source(embedders, source, data.batch_size)
    captions = [source.captions(int(index)) for index in images.records]
    for index, group in zip(images.records, captions, strict=True):
        if len(group) % 2:
            key = source.key(int(index))
            raise UserError(
                f"{data.path}: {key} has {len(group)} captions; accepted are pairs of a right and a"
                " wrong one"
            )
    texts = [text for group in captions for text in group]
    imageof_pair = np.repeat(np.arange(len(captions)), [len(group) // 2 for group in captions])
    texts_Nx2xD = embed_texts(embedders, texts).reshape(len(imageof_pair), 2, -1)
    scores = np.einsum("nd,ntd->nt", images.embeds[imageof_pair], texts_Nx2xD)[:, None]
    hits = {"text_accuracy": selection_hits(scores)["text_accuracy"]}
    sizes = {"num_images": len(captions), "num_samples": len(imageof_pair)}
    return [_row(dataset_fields(source, data), hits, sizes, imageof_pair)]


def _row(
    fields: Row, hits: dict[str, np.ndarray], sizes: Row, groups: np.ndarray | None = None
) -> Row:
    """Returns a row of hits (N,), with their intervals and the arrays behind them."""
    samples = {f"{METRIC}{name}": values for name, values in hits.items()}
    if groups is not None:
        samples |= {f"{GROUPS}{name}": groups for name in hits}
    return {**fields, **metrics_row(hits, groups), **sizes, "samples": samples}


def of_pair(data: TaskData, number: int) -> TaskData:
    """Returns the data of one of Winoground's two images and captions."""
    return dataclasses.replace(
        data, image_column=f"image_{number}", caption_column=f"caption_{number}"
    )


def winoground(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Matches two images with two captions, of columns image_0, image_1, caption_0, caption_1."""
    parts = [of_pair(data, number) for number in (0, 1)]
    sources = [open_captioned(part) for part in parts]
    if len(sources[0]) != len(sources[1]):
        sizes = " and ".join(str(len(source)) for source in sources)
        raise UserError(f"{data.path}: has {sizes} usable rows of its two images; give whole rows")
    found = [embed_source(embedders, source, data.batch_size) for source in sources]
    both = np.intersect1d(found[0].records, found[1].records)
    images_Nx2xD = np.stack([x.embeds[np.isin(x.records, both)] for x in found], 1)
    texts = [source.captions(int(index))[0] for index in both for source in sources]
    texts_Nx2xD = embed_texts(embedders, texts).reshape(images_Nx2xD.shape)
    hits = selection_hits(np.einsum("nid,ntd->nit", images_Nx2xD, texts_Nx2xD))
    return [_row(dataset_fields(sources[0], data), hits, {"num_samples": len(both)})]


def open_candidates(data: TaskData) -> Source:
    """Opens WinoGAViL's images."""
    read_associations(data.path)
    return open_captioned(data, needs_captions=False)


def winogavil(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures which candidate images a cue is associated with (see `associations.py`)."""
    problems, source = read_associations(data.path), open_candidates(data)
    images = embed_source(embedders, source, data.batch_size)
    files = [Path(source.key(int(index))) for index in images.records]
    image_of = {name: row for row, file in enumerate(files) for name in (file.name, file.stem)}
    texts = embed_texts(embedders, [problem.prompt for problem in problems])
    most = max(len(problem.candidates) for problem in problems)
    scores, targets = np.full((len(problems), most), -np.inf), np.zeros((len(problems), most), bool)
    for number, (problem, text) in enumerate(zip(problems, texts, strict=True)):
        missing = [name for name in problem.candidates if name not in image_of]
        if missing:
            raise UserError(f"{data.path}: no usable image of the candidate {missing[0]!r}")
        rows = [image_of[name] for name in problem.candidates]
        scores[number, : len(rows)] = images.embeds[rows] @ text
        targets[number, : len(rows)] = problem.is_associated
    values = jaccard_index(scores, targets)
    sizes = {"num_images": len(files), "num_samples": len(problems)}
    row = _row(dataset_fields(source, data), {"jaccard": values}, sizes)
    candidates = np.asarray([len(problem.candidates) for problem in problems])
    for low, high in ((5, 6), (10, 12)):
        of_size = values[(candidates >= low) & (candidates <= high)]
        if len(of_size):
            row |= metrics_row({f"jaccard_{low}_to_{high}": of_size})
    return [row]
