"""Low-rank updates of linear maps: LoRA (Hu et al. 2022), rank-stabilised (Kalajdzievski 2023), and
DoRA (Liu et al. 2024).

A linear map is a `Site` of the parameter tree, named by the path of its kernel; the parts of an
attention's joint kernel are `query`, `key` and `value`. Its update is two arrays of an adapter,
SITE_a (in, r) and SITE_b (r, out): W + s·a·b. DoRA has SITE_magnitude (out,) too:
m·(W + s·a·b) / ‖W + s·a·b‖, with the norm over the inputs of each output.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adaptation.tree import Adapter, flat, nested
from clip_jax.arguments import POSITIVE, Checked, Range
from clip_jax.errors import UserError

_JOINT = "query_key_value"
PARTS = ("query", "key", "value")
# The names of `LowRank.targets`, and the sites that they mean.
TARGETS = {
    "query": r".*/attention/query",
    "key": r".*/attention/key",
    "value": r".*/attention/value",
    "out": r".*/attention/out",
    "mlp": r".*/mlp/(in|gate|out)/kernel",
    "projection": r"(vision|text)/projection\w*",
    "patch_embedding": r"vision/patch_embedding",
}


class Site(NamedTuple):
    """A linear map of a model."""

    path: str  # of the map
    kernel: str  # path of the parameter that holds it
    part: int | None  # of a joint kernel (in, 3, H, K)
    inputs: int
    outputs: int

    @property
    def is_hooked(self) -> bool:
        """Whether `adaptation.hooks` knows it; others are merged."""
        return self.part is not None or self.path.endswith(("/attention/out", "/kernel"))


@dataclasses.dataclass(frozen=True)
class LowRank(Checked):
    """Options of low-rank updates; the defaults are CLIP-LoRA's (Zanella and Ben Ayed 2024)."""

    rank: Annotated[int, Range(1)] = 2
    alpha: Annotated[float, POSITIVE] = 1.0
    scaling: Literal["rank", "sqrt_rank"] = "sqrt_rank"  # s = alpha / this
    targets: tuple[str, ...] = PARTS  # of `TARGETS`
    towers: tuple[str, ...] = ("vision", "text")
    layers: tuple[int, ...] | None = None  # blocks of each tower, from 0; None: all
    dropout: Annotated[float, Range(0, 0.99)] = 0.25  # of the inputs of the updates, in training
    magnitude: bool = False  # DoRA

    @property
    def scale(self) -> float:
        """The factor s of the updates."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))


def sites(params: Any) -> list[Site]:
    """Returns the linear maps of a model whose blocks are separate: its towers' matrices."""
    found = []
    for path, leaf in flat(params).items():
        shape = np.shape(leaf)
        if not path.startswith(("vision/", "text/")):
            continue
        owner, name = path.rsplit("/", 1)
        if name == _JOINT:
            outputs = math.prod(shape[2:])
            found += [
                Site(f"{owner}/{part}", path, i, shape[0], outputs) for i, part in enumerate(PARTS)
            ]
        elif len(shape) >= 2 and any(re.fullmatch(p, path) for p in TARGETS.values()):
            found.append(Site(path, path, None, math.prod(shape[:-1]), shape[-1]))
    return found


def chosen_sites(params: Any, options: LowRank) -> list[Site]:
    """Returns the sites that the options name, in the order of the parameters.

    Raises UserError: an unknown target, one that the model does not have, or a rank over the width.
    """
    for target in options.targets:
        if target not in TARGETS:
            raise UserError(f"targets={target!r}: accepted are {', '.join(TARGETS)}")
    there = [
        site
        for site in sites(params)
        if site.path.split("/")[0] in options.towers
        and (options.layers is None or _layer(site) in (None, *options.layers))
    ]

    def matches(site: Site, targets: Iterable[str]) -> bool:
        return any(re.fullmatch(TARGETS[target], site.path) for target in targets)

    for target in options.targets:
        if not any(matches(site, [target]) for site in there):
            has = [name for name in TARGETS if any(matches(site, [name]) for site in there)]
            raise UserError(
                f"targets={target!r}: these towers have no such map; they have {', '.join(has)}"
            )
    chosen = [site for site in there if matches(site, options.targets)]
    for site in chosen:
        if options.rank > min(site.inputs, site.outputs):
            raise UserError(
                f"rank={options.rank}: {site.path} is {site.inputs} x {site.outputs}; accepted is"
                f" at most {min(site.inputs, site.outputs)}"
            )
    return chosen


def _layer(site: Site) -> int | None:
    found = re.search(r"/blocks_(\d+)/", site.path)
    return int(found[1]) if found else None


def init_low_rank(params: Any, options: LowRank, key: jax.Array) -> Adapter:
    """Makes the updates, float32: a from U(-1/√in, 1/√in) as PEFT has it, b zero.

    Raises UserError: as `chosen_sites`.
    """
    adapter: Adapter = {}
    leaves = flat(params)
    for number, site in enumerate(chosen_sites(params, options)):
        bound = site.inputs**-0.5
        shape = (site.inputs, options.rank)
        site_key = jax.random.fold_in(key, number)
        adapter[f"{site.path}_a"] = jax.random.uniform(site_key, shape, jnp.float32, -bound, bound)
        adapter[f"{site.path}_b"] = jnp.zeros((options.rank, site.outputs), jnp.float32)
        if options.magnitude:
            weight = matrix(leaves[site.kernel], site)
            adapter[f"{site.path}_magnitude"] = jnp.linalg.norm(weight, axis=0)
    return adapter


def matrix(kernel: Any, site: Site) -> Any:
    """Returns the map's matrix (in, out) of its kernel."""
    if site.part is not None:
        kernel = kernel[:, site.part]
    return kernel.reshape(site.inputs, site.outputs)


def updated_kernel(kernel: Any, site: Site, adapter: Adapter, scale: Any) -> Any:
    """Returns the kernel with the site's update in it, in the kernel's dtype; differentiable.

    The norm that DoRA divides by has no gradient (their section 4.3).
    """
    a, b = adapter[f"{site.path}_a"], adapter[f"{site.path}_b"]
    weight = matrix(kernel, site).astype(jnp.float32) + scale * (a @ b)
    magnitude = adapter.get(f"{site.path}_magnitude")
    if magnitude is not None:
        norm = jax.lax.stop_gradient(jnp.linalg.norm(weight, axis=0))
        weight = weight * (magnitude / norm)
    if site.part is None:
        return weight.reshape(kernel.shape).astype(kernel.dtype)
    part = weight.reshape(kernel.shape[:1] + kernel.shape[2:]).astype(kernel.dtype)
    return jnp.asarray(kernel).at[:, site.part].set(part)


def merged(params: Any, adapter: Adapter, scale: Any, hooked_too: bool = True) -> Any:
    """Returns the parameters with an adapter's low-rank updates and replaced leaves in them.

    With `hooked_too=False`, updates that `adaptation.hooks` lets in are left to it; those with a
    magnitude are always merged.
    """
    leaves = flat(params)
    leaves |= {path: leaf for path, leaf in adapter.items() if path in leaves}
    for site in sites(params):
        if f"{site.path}_a" not in adapter:
            continue
        if hooked_too or not is_hooked(site, adapter):
            leaves[site.kernel] = updated_kernel(leaves[site.kernel], site, adapter, scale)
    return nested(leaves)


def is_hooked(site: Site, adapter: Adapter) -> bool:
    """Whether a site's update can stay beside its kernel."""
    return site.is_hooked and f"{site.path}_magnitude" not in adapter
