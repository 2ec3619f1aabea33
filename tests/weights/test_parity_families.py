"""Every family against its reference: transformers, or open_clip with timm, in their own
environment.

`make test-parity` builds that environment and runs these tests (marker "parity"); a plain `pytest`
leaves them out. Weights are random in every parameter; see tests/oracle/families.py for the models
and tests/oracle/references.py for what the references give. The largest deviations go into the
table of docs/parity.md.
"""

import functools
import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import cosine, relative_error
from places import REPOSITORY, TESTS
from tiny_clip import changed, nested, to_state_dict

import clip_jax
from clip_jax.clip import Clip
from clip_jax.losses import sigmoid_loss, similarity_logits, softmax_loss
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.config import ClipConfig
from clip_jax.models.generation import Generation, generate_tokens
from clip_jax.models.two_tower import TwoTower, l2_normalize
from clip_jax.sharding import make_mesh
from clip_jax.training.config import OptimizerConfig
from clip_jax.training.step.gradient import Objective
from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
from clip_jax.training.step.state import TrainState
from clip_jax.training.step.update import make_train_step
from clip_jax.weights.files.tensors import open_tensors
from clip_jax.weights.layouts import open_clip_config
from clip_jax.weights.layouts.timm import has_timm_tower

sys.path.append(str(TESTS / "oracle"))

from families import FAMILIES, Family
from parity_client import Cell, References, load_arrays

pytestmark = pytest.mark.parity

LEAST_COSINE, LARGEST_DELTA, LARGEST_LOGIT_DELTA = 0.999999, 2e-5, 1e-3
LEAST_COSINE_BFLOAT16 = 0.999
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-4
TRAINED = [name for name, family in FAMILIES.items() if family.training]
DIFFERENTIATED = [name for name, family in FAMILIES.items() if family.gradients]


@pytest.fixture(scope="session")
def references() -> Iterator[References]:
    """The reference libraries; ORACLE names another Python that has them."""
    python = Path(os.environ.get("ORACLE", REPOSITORY / ".oracle" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no reference libraries at {python}: run `make oracle`, or set ORACLE")
    process = References(python)
    yield process
    process.close()


class Case:
    """One family: the reference's folder, inputs and outputs, and our model of that folder."""

    def __init__(self, family: Family, references: References):
        self.family, self.references = family, references
        self.folder = references.made(family)
        self.inputs = load_arrays(self.folder / "inputs.npz")
        self.wanted = load_arrays(self.folder / "outputs.npz")

    @property
    def source(self) -> Path:
        """What a user would give to `load`."""
        model = self.folder / "model"
        return model / "model.pt" if self.family.layout == "openai" else model

    def save(self, folder: Path, layout: str) -> None:
        """Without tokenizer files, which have tests of their own."""
        Clip(self.clip.config, self.clip.params).save(folder, layout)

    def load(self, source: Path, dtype: str = "float32", **overrides: Any) -> Clip:
        mesh = make_mesh(devices=jax.local_devices()[:1])
        return clip_jax.load(source, dtype, mesh=mesh, **nested(overrides))

    @functools.cached_property
    def clip(self) -> Clip:
        return self.load(self.source, **self.family.overrides)

    @functools.cached_property
    def found(self) -> dict[str, np.ndarray]:
        """Our float32 outputs under the reference's names."""
        found = our_outputs(self.clip, self.inputs, self.family.loss)
        if self.family.captions:
            found |= our_captions(self.clip, self.inputs["images"])
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, references: References) -> Iterator[Case]:
    """One family at a time, with nothing of it left in memory behind it."""
    yield Case(FAMILIES[request.param], references)
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: models are large, and pytest keeps its folders for days."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@contextmanager
def measured(case: Case, check: str) -> Iterator[Cell]:
    """The table's cell, written whatever happens."""
    cell = Cell(case.family.name, check)
    try:
        yield cell
        cell.close()
    finally:
        cell.broken()


@functools.partial(jax.jit, static_argnames=("config", "loss"))
def _forward(
    params: Any, images: jax.Array, tokens: jax.Array, config: ClipConfig, loss: str
) -> dict[str, jax.Array]:
    model, variables = TwoTower(config), {"params": params}
    image: Any = model.apply(variables, images, method="encode_image")
    text: Any = model.apply(variables, tokens, method="encode_text")
    image_embeds, text_embeds = l2_normalize(image), l2_normalize(text)
    scale, bias = jnp.exp(params["logit_scale"]), params.get("logit_bias", jnp.float32(0))
    both = image_embeds, text_embeds, scale
    found = {
        "image_features": image,
        "text_features": text,
        "image_embeds": image_embeds,
        "text_embeds": text_embeds,
        "logits": similarity_logits(*both, bias),
        "loss": softmax_loss(*both) if loss == "softmax" else sigmoid_loss(*both, bias),
    }
    if config.decoder is not None:
        logits: Any = model.apply(variables, images, tokens, method="caption_logits")
        found["caption_logits"] = logits
    return found


def our_outputs(clip: Clip, inputs: dict[str, np.ndarray], loss: str) -> dict[str, np.ndarray]:
    found = _forward(clip.params, inputs["images"], inputs["tokens"], clip.config, loss)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def our_captions(clip: Clip, images: np.ndarray) -> dict[str, np.ndarray]:
    """Greedy captions as token ids."""
    config, vocab = clip.config, clip.config.vocab_size
    # The pixels are those that the network sees.
    config = changed(config, image_mean=(0.0,) * 3, image_std=(1 / 255,) * 3)
    settings = Generation(
        method="greedy",
        start_id=vocab - 2,
        eos_id=vocab - 1,
        pad_id=0,
        max_length=16,
        min_length=5,
    )
    return {"captions": np.asarray(generate_tokens(clip.params, images, 0, 0, config, settings))}


def compare(cell: Cell, found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """All outputs within the bars."""
    for tower in ("image", "text"):
        features, embeds = f"{tower}_features", f"{tower}_embeds"
        assert found[embeds].shape == wanted[embeds].shape
        assert np.isfinite(wanted[features]).all()
        lost = 1 - cosine(found[features], wanted[features]).min()
        cell.at_most("1 - cosine", lost, 1 - LEAST_COSINE)
        cell.at_most("delta", np.abs(found[embeds] - wanted[embeds]).max(), LARGEST_DELTA)
    cell.at_most("logits", np.abs(found["logits"] - wanted["logits"]).max(), LARGEST_LOGIT_DELTA)
    cell.at_most("loss", abs(found["loss"] - wanted["loss"]), LARGEST_LOGIT_DELTA)
    if "caption_logits" in wanted:
        ours, theirs = found["caption_logits"], wanted["caption_logits"]
        error = relative_error(ours[:, : theirs.shape[1]], theirs)
        cell.at_most("caption_logits", error, LARGEST_DELTA)
    if "captions" in wanted:
        different = (found["captions"] != wanted["captions"]).sum()
        cell.at_most("different caption ids", different, 0)


def names_of(family: Family) -> list[str]:
    if not family.names:
        return []
    return [name for name in clip_jax.list_models() if re.fullmatch(family.names, name)]


def test_every_architecture_has_its_family() -> None:
    listed = sorted(name for family in FAMILIES.values() for name in names_of(family))
    assert listed == sorted(clip_jax.list_models())


def test_import(case: Case) -> None:
    """The reference's own folder: every tensor used, sizes and preprocessing as it says."""
    with measured(case, "import") as cell:
        config = case.clip.config
        images, tokens = case.inputs["images"], case.inputs["tokens"]
        assert images.shape[1:] == (config.image_size, config.image_size, 3)
        assert tokens.shape[1] <= config.context_length
        scalars = sum(leaf.size for leaf in jax.tree.leaves(case.clip.params))
        stored = open_tensors(weights_file(case.source)).shapes
        skipped = r"(num_batches_tracked|position_ids|token_type_ids|^[a-z]*_[a-z]*)$"
        numbers = ("logit_scale", "logit_bias", "positional_embedding", "text_projection")
        wanted = sum(
            int(np.prod(shape))
            for name, shape in stored.items()
            if name in numbers or not re.search(skipped, name)
        )
        assert scalars == wanted
        document = case.folder / "model" / "open_clip_config.json"
        if document.exists():
            said = json.loads(document.read_text(encoding="utf-8"))["preprocess_cfg"]
            assert config.image_mean == tuple(said["mean"])
            assert config.image_std == tuple(said["std"])
            assert config.image_interpolation == said["interpolation"]
            assert config.image_resize == said["resize_mode"]
        cell.note(parameters=case.clip.num_parameters)


def weights_file(source: Path) -> Path:
    return source if source.is_file() else next(source.glob("*.safetensors"))


def test_forward(case: Case) -> None:
    with measured(case, "forward") as cell:
        compare(cell, case.found, case.wanted)


def test_bfloat16(case: Case) -> None:
    """Parameters and computation in bfloat16, against our float32."""
    with measured(case, "bfloat16") as cell:
        clip = case.load(case.source, "bfloat16", **case.family.overrides)
        found = our_outputs(clip, case.inputs, case.family.loss)
        for features in ("image_features", "text_features"):
            lost = 1 - cosine(found[features], case.found[features]).min()
            cell.at_most("1 - cosine", lost, 1 - LEAST_COSINE_BFLOAT16)


@contextmanager
def rows_reduced(case: Case) -> Iterator[None]:
    """Inside, the names that stand for whole towers on disk (timm's, and those of Hugging Face's
    text towers) mean the reduced ones, in our tables as they do in the references."""
    reduced = case.family.overrides
    with pytest.MonkeyPatch.context() as patch:
        for name, row in ARCHITECTURES.items():
            vision = {k: v for k, v in reduced.items() if k.startswith("vision__")}
            same = row.vision.kind == case.clip.config.vision.kind
            stages = np.size(row.vision.layers) == np.size(reduced.get("vision__layers", 0))
            if vision and same and stages and has_timm_tower(row.vision):
                patch.setitem(ARCHITECTURES, name, changed(row, **vision))
        if "text__layers" in reduced:
            for name, (width, _, heads, mlp, _) in open_clip_config.HF_TEXT.items():
                small = (width, reduced["text__layers"], heads, mlp, reduced["vocab_size"])
                patch.setitem(open_clip_config.HF_TEXT, name, small)
        yield


def test_export(case: Case, folder: Path) -> None:
    """Our folder, read by the reference library, gives the first reference's outputs."""
    if not case.family.formats:
        pytest.skip("no format but ours expresses it")
    with measured(case, "export") as cell, rows_reduced(case):
        cell.note(formats=case.family.formats)
        for layout in case.family.formats:
            case.save(folder / layout, layout)
            inputs = case.folder / "inputs.npz"
            found = case.references.run(case.family, layout, folder / layout, inputs)
            compare(cell, found, case.wanted)


def test_round_trip(case: Case, folder: Path) -> None:
    """What we wrote is read back as it was, bit for bit, in every format that holds the model."""
    formats = (*case.family.formats, "clip_jax")
    with measured(case, "round_trip") as cell, rows_reduced(case):
        cell.note(formats=formats)
        before = jax.tree_util.tree_flatten_with_path(case.clip.params)[0]
        for layout in formats:
            case.save(folder / layout, layout)
            again = case.load(folder / layout)
            after = jax.tree_util.tree_flatten_with_path(again.params)[0]
            assert [path for path, _ in before] == [path for path, _ in after]
            different = [
                jax.tree_util.keystr(path)
                for (path, a), (_, b) in zip(before, after, strict=True)
                if np.asarray(a).tobytes() != np.asarray(b).tobytes()
            ]
            assert not different, f"{layout}: {different[:5]}"
            del again, after
            gc.collect()


def test_count(case: Case) -> None:
    """Exact parameter counts of the full-size models against the references' own."""
    names = names_of(case.family)
    if not names:
        pytest.skip("another row stands for the names of this family")
    with measured(case, "count") as cell:
        wanted = case.references.counts(names)
        assert {name: clip_jax.count_parameters(name) for name in names} == wanted
        cell.note(names=names)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients(name: str, references: References) -> None:
    """The softmax loss's gradient with respect to every parameter, by torch's autograd."""
    case = Case(FAMILIES[name], references)
    with measured(case, "gradients") as cell:
        clip = case.clip

        def loss(params: Any) -> jax.Array:
            out: Any = TwoTower(clip.config).apply(
                {"params": params}, case.inputs["images"], case.inputs["tokens"]
            )
            return softmax_loss(out.image_embeds, out.text_embeds, out.logit_scale)

        value, gradients = jax.jit(jax.value_and_grad(loss))(clip.params)
        cell.at_most("loss", abs(value - case.wanted["loss"]), LOSS_TOLERANCE)
        found = to_state_dict(clip.config, gradients)
        wanted = open_tensors(case.folder / "gradients.safetensors")
        running = {n for n in found if n.endswith(("running_mean", "running_var"))}
        assert found.keys() - running == set(wanted.shapes)
        largest = max(np.abs(wanted.read(key)).max() for key in wanted.shapes)
        for key in wanted.shapes:
            if key.endswith("k_proj.bias"):  # exactly 0: it shifts all scores of a query alike
                cell.at_most("of zero", np.abs(found[key]).max() / largest, GRADIENT_TOLERANCE)
                continue
            cell.at_most("relative", relative_error(found[key], wanted.read(key)), 1e-4)
        cell.note(parameters=len(wanted.shapes))


@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps(name: str, references: References) -> None:
    """AdamW on the same batches from the same weights: the loss before every step."""
    case = Case(FAMILIES[name], references)
    with measured(case, "training") as cell:
        data = load_arrays(case.folder / "training.npz")
        settings = json.loads(str(data["settings"]))
        steps = settings["steps"]
        clip = case.clip
        options = OptimizerConfig(
            learning_rate=settings["peak"],
            warmup_steps=settings["warmup"],
            weight_decay=settings["decay"],
            b1=settings["b1"],
            b2=settings["b2"],
            eps=settings["eps"],
            clip_norm=None,
        )
        optimizer = make_optimizer(options, steps)
        params = clip.params | {"logit_scale": jnp.asarray(data["logit_scale"])}
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=None,
            key=jax.random.key(0),
            failed=jnp.zeros((), bool),
        )
        schedule = learning_rate_schedule(options, steps)
        step = jax.jit(make_train_step(Objective(clip.config), optimizer, schedule))
        losses = []
        for images, tokens in zip(data["images"], data["tokens"], strict=True):
            state, metrics = step(state, {"images": images, "tokens": tokens})
            losses.append(float(metrics["loss"]))
        assert len(losses) == steps == 20
        assert data["losses"][-1] < 0.5 * data["losses"][0]
        deviation = np.abs(np.array(losses) - data["losses"]).max()
        cell.at_most("deviation", deviation, LOSS_TOLERANCE)
        cell.note(losses=losses)
