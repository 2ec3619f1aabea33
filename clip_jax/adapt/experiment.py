"""Runs of methods on few-shot splits of labelled images, judged on images that none has seen."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adapt.features import Features
from clip_jax.adapt.few_shot import Split, few_shot_split, given_split, whole_split
from clip_jax.adapt.learning import CROPS, Images, Run, learn, words_of
from clip_jax.adapt.parts import ACCURACY, BEFORE, Judge, Learned, Outcome, Part, Row, metrics
from clip_jax.adapt.step import Frozen, Problem
from clip_jax.adapt.wise_ft import curve, line_judge
from clip_jax.adaptation.context import ClassPrompts, class_prompts
from clip_jax.adaptation.derived import bases
from clip_jax.adaptation.feature_methods import FEATURE_METHODS
from clip_jax.adaptation.feature_training import fit_all
from clip_jax.adaptation.folder import HEAD, Adaptation, hash_of_base
from clip_jax.adaptation.heads import PROBE, head_logits
from clip_jax.adaptation.methods import METHODS, Method
from clip_jax.adaptation.shots import Shots
from clip_jax.adaptation.tree import Adapter, with_separate_blocks
from clip_jax.clip import Clip
from clip_jax.data.stream.evaluation_batches import evaluation_batches
from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.embeddings import data_hash
from clip_jax.evaluation.metrics.paired import paired_difference
from clip_jax.evaluation.probe.logistic import fit_logistic_regression
from clip_jax.evaluation.probe.sweep import Examples, sweep_penalties
from clip_jax.evaluation.recognition import prompts_of
from clip_jax.evaluation.zero_shot import (
    METRIC,
    check_classnames,
    prompts_classifier,
)

PROMPT = "a photo of a {}."  # CLIP-LoRA's, if the templates are several


@dataclasses.dataclass(frozen=True)
class Options:
    """Wishes of a person about the runs; None or () leaves it to the method's recipe."""

    shots: tuple[int, ...]  # empty: all images
    seeds: int
    learning_rates: tuple[float, ...]  # of several, validation chooses
    steps: int | None
    batch_size: int | None
    flips: bool
    views: int = 0  # augmented views of each image for methods on features; 0: the image as it is
    distillation: float = 0.0  # weight of the divergence from the zero-shot model


class Experiment:
    """A model, the data it is adapted to, and the figures of the model as it was."""

    def __init__(
        self,
        clip: Clip,
        base: str,
        data: TaskData,
        train: Part,
        test: Part | None,
        options: Options,
        workdir: Path,
        say: Callable[[str], None],
    ) -> None:
        """Embeds nothing yet. `base` is what `load` takes for the model."""
        self._clip, self._base, self._data, self._options = clip, base, data, options
        self._train, self._test, self._workdir, self._say = train, test, workdir, say
        self.config, params = with_separate_blocks(clip.config, clip.params)
        self._params = jax.device_put(params)
        augmentation = dataclasses.replace(CROPS, flip_probability=0.5 if options.flips else 0.0)
        self._images = Images(train.source, self.config, augmentation)
        features = functools.partial(Features, clip, self._images, data.batch_size)
        self._own, self._of_test = features(train), None if test is None else features(test)
        self._hash = hash_of_base(params)
        self._names = [names[0] for names in check_classnames(train.labels.prompt_names)]
        self._functions: dict[str, Callable[..., jax.Array]] = {}

    def run(self, name: str) -> list[Outcome]:
        """Runs one method for all shots and seeds; the seeds of a number of shots together."""
        found = []
        for shots in self._options.shots or (0,):
            splits = [self._split(shots, seed) for seed in range(self._options.seeds)]
            begun = time.perf_counter()
            learn = self._learn if name in METHODS else self._fit
            learned = learn(name, shots, splits)
            seconds = time.perf_counter() - begun
            for seed, (split, each) in enumerate(zip(splits, learned, strict=True)):
                found.append(self._judged(name, shots, seed, split, each, seconds))
        return found

    def _split(self, shots: int, seed: int) -> Split:
        labels, names = self._train.labels.numbers, self._names
        if (validates := self._train.validates) is not None:
            return given_split(labels, validates, names, shots, seed, self._data.path)
        if not shots:
            return whole_split(labels, names, seed, self._data.path)
        most = max(self._options.shots)
        return few_shot_split(labels, names, shots, seed, most, self._data.path)

    def _fit(self, name: str, shots: int, splits: Sequence[Split]) -> list[Learned]:
        """Fits a method on features, all seeds as one program."""
        del shots
        if name == PROBE:
            return [self._probe(split) for split in splits]
        method, classifier = FEATURE_METHODS[name], jnp.asarray(self._classifier)
        keys = jax.vmap(jax.random.key)(jnp.arange(len(splits)))
        fitted = fit_all(
            method,
            _stacked([self._examples(split.train, method.each_view) for split in splits]),
            _stacked([self._examples(split.validation) for split in splits]),
            classifier,
            keys,
            self._clip.logit_scale,
            None if method.each_view else self._views([split.train for split in splits]),
        )
        whole = jax.tree.map(np.asarray, fitted)
        found = []
        for number in range(len(splits)):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], whole)
            adapter = {f"{HEAD}params/{key}": leaf for key, leaf in one.params.items()}
            adapter |= {f"{HEAD}options/{key}": leaf for key, leaf in one.options.items()}
            adapter[f"{HEAD}classifier"] = self._classifier
            trained = method.recipe.trained if method.recipe else ()
            count = sum(one.params[key].size for key in trained)
            found.append(
                Learned(self._adaptation(name, adapter), count, self._judge_fitted(name, adapter))
            )
        return found

    def _probe(self, split: Split) -> Learned:
        """Fits the plain linear probe of one seed."""

        train = self._examples(split.train, each_view=True)
        sweep = sweep_penalties(train, self._examples(split.validation))
        l2 = [sweep.best / len(train.labels)]
        # Validation images do not join the fit, as they compare the methods.
        weights, bias = fit_logistic_regression(*train, l2)
        adapter = {
            f"{HEAD}params/weights_DC": weights[0].astype(np.float32),
            f"{HEAD}params/bias_C": bias[0].astype(np.float32),
            f"{HEAD}classifier": self._classifier,
        }
        values = weights[0].size + bias[0].size
        return Learned(self._adaptation(PROBE, adapter), values, self._judge_fitted(PROBE, adapter))

    def _examples(self, records: np.ndarray, each_view: bool | None = None) -> Examples:
        """Returns features with unit rows, and labels.

        They are of the images as they are, if `each_view` is None or there are no views; else of
        each view, or of the views' means.
        """
        labels = self._train.labels.numbers[records]
        if each_view is None or not self._options.views:
            return Examples(self._own.rows(records), labels)
        views_VND = self._own.views(records, self._options.views)
        if each_view:
            rows = views_VND.reshape(-1, views_VND.shape[-1])
            return Examples(rows, np.tile(labels, len(views_VND)))
        means_ND = views_VND.mean(0)
        return Examples(means_ND / np.linalg.norm(means_ND, axis=1, keepdims=True), labels)

    def _views(self, records: Sequence[np.ndarray]) -> jax.Array | None:
        """Returns the views of the images of R runs, (R, V, N, D), if there are some."""
        if not self._options.views:
            return None
        return jnp.stack([self._own.views(rows, self._options.views) for rows in records])

    def _judge_fitted(self, name: str, adapter: Adapter) -> Judge:
        def judge(part: Part, records: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            features = self._features_of(part)
            numbers = features.used(records)
            logits = head_logits(name, adapter, features.rows(numbers))
            return logits, part.labels.numbers[numbers]

        return judge

    def _adaptation(self, name: str, adapter: Adapter, scale: float = 1.0) -> Adaptation:
        return Adaptation(adapter, scale, name, self._base, self._hash, tuple(self._names))

    def _learn(self, name: str, shots: int, splits: Sequence[Split]) -> list[Learned]:
        problem = self._problem(name)
        recipe = problem.method.recipe
        labels = self._train.labels.numbers
        images = max(len(split.train) for split in splits)
        a_class = shots or max(1, images // len(self._names))
        steps = self._options.steps or recipe.steps(min(a_class, 16), len(self._names))
        rates = self._options.learning_rates or (recipe.learning_rate,)
        runs = [
            Run(split.train, labels[split.train], seed, rate)
            for seed, split in enumerate(splits)
            for rate in rates
        ]
        words = words_of(problem, self._clip.tokenizer)

        def start(seed: int) -> Adapter:
            return problem.method.init(self.config, self._params, jax.random.key(seed), words)

        def say(text: str) -> None:
            self._say(f"{name}, {shots or 'all'} shots: {text}")

        workdir = self._workdir / "runs" / f"{name}-{shots or 'all'}"
        options = self._options
        views = 0 if problem.learns_images else options.views
        drawn = (options.flips, views) if problem.learns_images or views else None
        identity = repr((self._hash, self._names, self._content, drawn))
        inputs = self._inputs(problem, splits)
        adapters = learn(problem, runs, inputs, steps, start, workdir, identity, say)
        function = jax.jit(problem.logits)
        judge = functools.partial(functools.partial, self._logits, problem, function)
        found = [
            Learned(
                self._adaptation(name, adapter, problem.method.scale),
                sum(np.size(leaf) for leaf in adapter.values()),
                judge(adapter),
                line_judge(adapter, self._params, judge),
                run.learning_rate,
            )
            for run, adapter in zip(runs, adapters, strict=True)
        ]
        of_seed = (found[first : first + len(rates)] for first in range(0, len(runs), len(rates)))
        return [self._best(each, split) for each, split in zip(of_seed, splits, strict=True)]

    def _best(self, learned: Sequence[Learned], split: Split) -> Learned:
        """Returns what is best on the validation images of a split."""

        def rank(each: Learned) -> tuple[float, float]:
            row, _ = metrics(*each.judge(self._train, split.validation))
            return row[ACCURACY], -row["log_loss"]

        return learned[0] if len(learned) == 1 else max(learned, key=rank)

    def judged(self, adaptation: Adaptation) -> tuple[Row, Row]:
        """Returns the figures of the test images before, and with an adapter of other classes.

        It is of one of `METHODS`, which know any classes.
        """
        assert self._test is not None
        problem = self._problem(adaptation.method)
        function = self._functions.setdefault(adaptation.method, jax.jit(problem.logits))
        found = self._logits(problem, function, adaptation.adapter, self._test, None)
        return self._before(None)[0], metrics(*found)[0]

    def _inputs(
        self, problem: Problem, splits: Sequence[Split]
    ) -> Callable[[np.ndarray, int, int], np.ndarray]:
        """Returns what learning reads: images, or features if the image tower does not learn."""
        if problem.learns_images:
            return self._images.batch
        count = self._options.views
        # All are embedded in large batches here, and found again in small ones.
        self._views([split.train for split in splits])

        def batch(records: np.ndarray, seed: int, step: int) -> np.ndarray:
            if not count:
                return self._own.rows(records)
            drawn = np.random.default_rng((seed, step)).integers(count, size=len(records))
            return self._own.views(records, count)[drawn, np.arange(len(records))]

        return batch

    @functools.cached_property
    def _classifier(self) -> np.ndarray:
        prompts = prompts_of(self._train.labels, self._data)
        return prompts_classifier(functools.partial(self._clip.encode_text, truncate=True), prompts)

    def _problem(self, name: str) -> Problem:
        method, options = METHODS[name], self._options
        if options.batch_size is not None:
            recipe = dataclasses.replace(method.recipe, batch_size=options.batch_size)
            method = dataclasses.replace(method, recipe=recipe)
        if options.distillation:
            pull = dataclasses.replace(method.pull, distillation=options.distillation)
            method = dataclasses.replace(method, pull=pull)
        shapes = jax.eval_shape(
            lambda: method.init(self.config, self._params, jax.random.key(0), ())
        )
        towers = {path.split("/")[0] for path in shapes}
        prompts = self._prompts(method) if "text" in towers else None
        frozen = Frozen(self._params, bases(self._params, shapes))
        classifier = jnp.asarray(self._classifier)
        return Problem(self.config, frozen, method, prompts, classifier, "vision" in towers)

    def _prompts(self, method: Method) -> ClassPrompts:
        """Returns one prompt a class, as the methods' papers have it."""
        tokenizer = self._clip.tokenizer
        if method.context is not None:
            return class_prompts(self.config, tokenizer, self._names, method.context.words)
        texts = [of_class[0] for of_class in self._one_prompt]
        vocabulary = np.arange(self.config.vocab_size)
        return ClassPrompts(self.config, tokenizer(texts, truncate=True), vocabulary)

    @functools.cached_property
    def _one_prompt(self) -> list[tuple[str, ...]]:
        """The prompt of each class by which the text tower learns and is judged."""
        prompts = prompts_of(self._train.labels, self._data)
        if all(len(of_class) == 1 for of_class in prompts):
            return prompts
        return [(PROMPT.format(name),) for name in self._names]

    @functools.cached_property
    def _content(self) -> str:
        return data_hash(self._train.source, None)

    def _judged(
        self, name: str, shots: int, seed: int, split: Split, learned: Learned, seconds: float
    ) -> Outcome:
        def of(part: Part, records: np.ndarray | None) -> tuple[Row, dict[str, np.ndarray]]:
            return metrics(*learned.judge(part, records))

        validation, _ = of(self._train, split.validation)
        row: Row = {
            "method": name,
            "shots": shots or "all",
            "seed": seed,
            **({} if learned.learning_rate is None else {"learning_rate": learned.learning_rate}),
            "trained_parameters": int(learned.values),
            "training_images": len(split.train),
            "seconds": round(seconds / self._options.seeds, 2),
            "validation": validation,
            "validation_before": self._before(split.validation)[0],
        }
        samples: dict[str, np.ndarray] = {}
        if self._test is not None:
            after, samples = of(self._test, None)
            before, samples_before = self._before(None)
            key = METRIC + ACCURACY
            difference = paired_difference(samples[key], samples_before[key])
            row |= {"before": before, "after": after, "difference": difference._asdict()}
            records = self._features_of(self._test).used(None)
            samples |= {"records": records, "classnames": np.array(self._names)}
            samples |= {f"before_{name}": samples_before[name] for name in BEFORE}
        if learned.judge_part is not None and shots == max(self._options.shots, default=0):
            row["wise_ft"] = curve(learned.judge_part, self._train, split.validation, self._test)
        return Outcome(row, learned.adaptation, samples)

    def _before(self, records: np.ndarray | None) -> tuple[Row, dict[str, np.ndarray]]:
        """Returns the zero-shot figures of the test images, or of some training images."""
        part = self._test if records is None else self._train
        assert part is not None
        features = self._features_of(part)
        numbers = features.used(records)
        embeds = features.rows(numbers)
        logits = self._clip.logit_scale * embeds @ self._classifier
        return metrics(logits, part.labels.numbers[numbers])

    def _features_of(self, part: Part) -> Features:
        if part is self._train:
            return self._own
        assert self._of_test is not None
        return self._of_test

    def _logits(
        self,
        problem: Problem,
        function: Callable[..., jax.Array],
        adapter: Adapter,
        part: Part,
        records: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits (N, K) and labels (N,) of images."""
        features, frozen = self._features_of(part), problem.frozen
        used = features.used(records)
        if not problem.learns_images:
            logits = np.asarray(function(adapter, frozen, features.rows(used)))
            return logits, part.labels.numbers[used]
        wanted = set(used.tolist())
        size = self._data.batch_size
        found, numbers_of = [], []
        for numbers, images in evaluation_batches(part.source, self._clip.transform, size):
            kept = np.array([number in wanted for number in numbers.tolist()])
            if not kept.any():
                continue
            padded = np.zeros((size, *images.shape[1:]), images.dtype)
            padded[: kept.sum()] = images[kept]
            logits = np.asarray(function(adapter, frozen, padded))
            found.append(logits[: kept.sum()])
            numbers_of.append(numbers[kept])
        return np.concatenate(found), part.labels.numbers[np.concatenate(numbers_of)]


def _stacked(runs: Sequence[Examples]) -> Shots:
    """Returns the examples of R runs, with a leading axis R."""
    features, labels = (np.stack(arrays) for arrays in zip(*runs, strict=True))
    weights = jnp.ones(labels.shape, jnp.float32)
    return Shots(jnp.asarray(features), jnp.asarray(labels, jnp.int32), weights)
