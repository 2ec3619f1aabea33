"""Devices to compile for: a described TPU slice, simulated CPU devices, or this machine's own."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import platform
import re
import sys
from typing import Any

import jax

from clip_jax.errors import UserError
from clip_jax.hosts.idle_tpu import QUIET_LIBTPU

_NAME = re.compile(r"(?:(?P<slices>\d+)x)?(?P<generation>[a-z]\w*):(?P<shape>\d+(?:x\d+)*)")
MOST_CPU_DEVICES = 4096
MOST_CHIPS = 9216
MOST_SLICES = 64


@dataclasses.dataclass(frozen=True)
class Generation:
    """One TPU generation."""

    hbm_gib: float  # per device; the compiler's limit, below the nominal size
    shapes: tuple[str, ...]  # chips per axis of the slices on offer
    devices_per_chip: int = 1
    options: tuple[tuple[str, Any], ...] = ()  # for `get_topology_desc`

    @property
    def hbm_bytes(self) -> int:
        """Bytes per device that a program may use."""
        return int(self.hbm_gib * 2**30)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
    "16x16x16", "16x16x24",
)  # fmt: skip
# The compiler states these limits when a program is too large (libtpu 0.0.42).
GENERATIONS = {
    "v2": Generation(7.48, ("2x2", "4x4", "8x8", "16x16"), devices_per_chip=2),
    "v3": Generation(
        15.48, ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "32x32"), devices_per_chip=2
    ),
    # A v4 chip's two cores form one device, as in any run on v4.
    "v4": Generation(30.75, _CUBES, options=(("chip_config_name", "megacore"),)),
    "v5e": Generation(15.75, _FLAT),
    "v5p": Generation(95.74, _CUBES),
    "v6e": Generation(31.25, _FLAT),
    "tpu7x": Generation(94.75, _CUBES, devices_per_chip=2),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Target devices of a compilation."""

    topology: str
    devices: tuple[Any, ...]
    hbm_bytes: int | None  # per device; None: unknown
    slices: int = 1

    @property
    def device_kind(self) -> str:
        """jax's name, such as "TPU v5 lite"."""
        return self.devices[0].device_kind

    @property
    def platform(self) -> str:
        """jax's platform: "tpu", "cpu" or "gpu"."""
        return self.devices[0].platform


def known_topologies() -> str:
    """Description of the topologies that `find_target` accepts."""
    by_shapes: dict[tuple[str, ...], list[str]] = {}
    for name, generation in GENERATIONS.items():
        by_shapes.setdefault(generation.shapes, []).append(name)
    tpus = "; ".join(f"{'|'.join(names)}:{'|'.join(s)}" for s, names in by_shapes.items())
    return (
        f"{tpus}; the axes in any order, multiples of 4 in three dimensions, and '2x' and so on "
        "before it for several slices; cpu:8 (simulated devices); local (this machine's devices)"
    )


def find_target(topology: str) -> Target:
    """The devices of a topology such as "v5p:8x8x4", "2xv5e:16x16", "cpu:8" or "local".

    It chooses jax's platform, so call it before anything touches a device. Raises `UserError` for
    an unknown name, listing the known ones, and if libtpu is missing.
    """
    if topology == "local":
        devices = tuple(jax.devices())
        return Target(topology, devices, _memory(devices[0]))
    if re.fullmatch(r"cpu:\d+", topology):
        return _simulated(topology, int(topology.removeprefix("cpu:")))
    return _described(topology)


def _described(topology: str) -> Target:
    """The devices of an absent TPU; needs its compiler."""
    found = _NAME.fullmatch(topology)
    generation = GENERATIONS.get(found["generation"]) if found else None
    slices = int(found["slices"] or 1) if found else 0
    if found is None or generation is None or not 1 <= slices <= MOST_SLICES:
        raise UserError(f"--topology={topology}: unknown; known are {known_topologies()}")
    sides = sorted(map(int, found["shape"].split("x")))
    known = [sorted(map(int, shape.split("x"))) for shape in generation.shapes]
    is_cube = len(sides) == len(known[0]) == 3 and all(side and side % 4 == 0 for side in sides)
    if sides not in known and not (is_cube and math.prod(sides) <= MOST_CHIPS):
        raise UserError(
            f"--topology={topology}: no slice of that shape; {found['generation']} has "
            f"{', '.join(generation.shapes)}, in any order"
        )
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        how = "pip install -e '.[tpu-preflight]' in the repository"
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            how = "there is one for Linux on x86-64 only"
        raise UserError(
            f"--topology={topology}: needs the TPU's compiler, libtpu: {how}; or use "
            "--topology=cpu:8 for a dry run without it"
        )
    for name, value in (QUIET_LIBTPU | {"TF_CPP_MIN_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    options = dict(generation.options)
    if sides == [1, 1]:  # the default is four chips per host
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    name = f"{found['generation']}:{found['shape']}"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"--topology={topology}: the TPU's compiler refuses it: {error}") from error
    return Target(topology, tuple(described.devices), generation.hbm_bytes, slices)


def _simulated(topology: str, count: int) -> Target:
    """The first `count` simulated CPU devices."""
    if not 1 <= count <= MOST_CPU_DEVICES:
        raise UserError(f"--topology={topology}: give 1 to {MOST_CPU_DEVICES} devices")
    with contextlib.suppress(RuntimeError):  # devices already exist; they are counted below
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology={topology}: this process has {len(devices)} devices already")
    return Target(topology, tuple(devices[:count]), _host_bytes(count))


def _memory(device: Any) -> int | None:
    """Bytes that programs may use of a present device."""
    if device.platform == "cpu":
        return _host_bytes(len(jax.local_devices()))
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(limit)


def _host_bytes(devices: int) -> int | None:
    """A simulated device's share of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // devices
    except (ValueError, OSError, AttributeError):
        return None
