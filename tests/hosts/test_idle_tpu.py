"""A TPU's compiler on a machine without a TPU writes nothing to stderr and costs no time."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from tiny import write_config

from clip_jax.hosts import idle_tpu

GOOGLE, INTEL = "0x1ae0", "0x8086"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this machine"
)
if idle_tpu._has_tpu("/"):
    pytest.skip("this machine has a TPU", allow_module_level=True)


@pytest.mark.parametrize(
    ("installed", "vendor", "kind", "expected"),
    [
        ({"libtpu"}, INTEL, "0x120000", "cpu"),
        ({"libtpu"}, GOOGLE, "0x088000", None),
        ({"libtpu"}, GOOGLE, "", None),
        ({"libtpu"}, GOOGLE, "0x020000", "cpu"),
        ({"libtpu"}, GOOGLE, "0x010802", "cpu"),
        ({"libtpu", "jax_plugins"}, INTEL, "0x030000", "quiet"),
        ({"libtpu", "jax_plugins"}, GOOGLE, "0x088000", None),
        (set(), INTEL, "0x120000", None),
    ],
    ids=["compiler", "tpu", "unknown", "network", "disk", "gpu", "tpu and gpu", "nothing"],
)
def test_what_is_decided(
    installed: set[str],
    vendor: str,
    kind: str,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:00:01.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    if kind:
        (device / "class").write_text(kind + "\n")
    monkeypatch.setattr(idle_tpu, "find_spec", lambda name: name in installed or None)
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    idle_tpu.leave_idle_tpu_alone(str(tmp_path))
    wanted = {None: {}, "cpu": {"JAX_PLATFORMS": "cpu"}, "quiet": idle_tpu.QUIET_LIBTPU}
    assert environment == wanted[expected]


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_a_device_file_is_a_sign_of_a_tpu(name: str, tmp_path: Path) -> None:
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    assert not idle_tpu._has_tpu(str(tmp_path))
    (tmp_path / "dev" / name).touch()
    assert idle_tpu._has_tpu(str(tmp_path))


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A child that has no choice of a platform from us."""
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    inherited["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.pop("path", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


USES = {
    "first": "import clip_jax.models.two_tower\nimport jax\nprint(jax.devices()[0].platform)",
    "jax first": "import jax\nimport clip_jax\nprint(jax.devices()[0].platform)",
    "jax in use": "import jax\njax.config.jax_platforms\n"
    "jax.config.update('jax_platforms', 'cpu')\njax.devices()\nimport clip_jax\nprint('cpu')",
    "losses": "from clip_jax import losses\nimport jax\nprint(jax.devices()[0].platform)",
    "child": "import clip_jax, subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'import clip_jax.losses, jax; print(\"cpu\")'])",
}


@needs_libtpu
@pytest.mark.parametrize("use", [*USES, "with plugins", "no choice"])
def test_python_is_silent(use: str, tmp_path: Path) -> None:
    (tmp_path / "jax_plugins").mkdir()
    environment = {"with plugins": {"path": str(tmp_path)}, "no choice": {"JAX_PLATFORMS": ""}}
    code = USES.get(use, USES["first"])
    result = run("-c", code, cwd=REPOSITORY, **environment.get(use, {}))
    assert (result.returncode, result.stdout, result.stderr) == (0, "cpu\n", "")


@pytest.mark.parametrize("choice", ["cpu", "tpu"])
def test_a_choice_of_the_user_stays(choice: str, tmp_path: Path) -> None:
    code = "import clip_jax, os\nprint(os.environ['JAX_PLATFORMS'])"
    assert run("-c", code, cwd=tmp_path, JAX_PLATFORMS=choice).stdout == choice + "\n"
    code = "import jax\njax.config.update('jax_platforms', 'tpu')\nimport clip_jax\n"
    assert run("-c", code + "print(jax.config.jax_platforms)", cwd=tmp_path).stdout == "tpu\n"


def test_importing_the_package_imports_no_jax(tmp_path: Path) -> None:
    code = "import clip_jax, sys\nprint('jax' in sys.modules, 'numpy' in sys.modules)"
    assert run("-c", code, cwd=tmp_path).stdout == "False False\n"


PROGRAMS = (
    ("train", "--config=tiny_run.py", "--workdir=w"),
    ("evaluate", "--model=w", "--tasks=glyphs/letters"),
    ("data", "verify", "--data=test", "--format=glyphs"),
    ("preflight", "--config=tiny_run.py", "--topology=v5e:1x1"),
)


@needs_libtpu
@pytest.mark.slow
def test_programs_are_silent(tmp_path: Path) -> None:
    write_config(tmp_path, steps=2, batch_size=8)
    for program, *flags in PROGRAMS:
        result = run("-m", f"clip_jax.{program}", *flags, cwd=tmp_path)
        assert result.returncode == 0, (program, result.stderr)
        for sign in ("libtpu", "TPU_", "InitGoogle", "common_lib", "WARNING"):
            assert sign not in result.stderr, (program, result.stderr)
