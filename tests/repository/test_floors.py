"""The floors of the package hold, and the linter sees a climb and a circle; the docs build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

BIN = Path(sys.executable).parent

# Each climb is (file, line added to it, words of the linter).
CLIMBS = [
    ("models/remat.py", "import clip_jax.clip", "clip_jax.models is not allowed to import"),
    ("errors.py", "import clip_jax.arguments", "clip_jax.errors is not allowed to import"),
    ("images/colour.py", "from clip_jax.text import rows", "clip_jax.images is not allowed"),
    ("evaluation/zero_shot.py", "import clip_jax.training.step.state", "is not allowed to import"),
    ("losses/split.py", "from clip_jax.losses import implementations", "circles"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = BIN / "lint-imports"
    if not program.exists():
        pytest.skip("import-linter is not installed")
    return subprocess.run(
        [str(program), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package without its tests, to plant something in."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "clip_jax", tmp_path / "clip_jax", ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_floors_hold() -> None:
    result = lint(REPOSITORY)
    assert result.returncode == 0, result.stdout
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(("file", "line", "said"), CLIMBS)
def test_a_planted_climb_or_circle_is_seen(file: str, line: str, said: str, copy: Path) -> None:
    path = copy / "clip_jax" / file
    path.write_text(f"{line}\n{path.read_text()}")
    result = lint(copy)
    assert result.returncode == 1
    assert said in result.stdout
    assert "BROKEN" in result.stdout


def test_no_room_is_crowded() -> None:
    for folder in (REPOSITORY / "clip_jax").rglob("*/"):
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 25, f"{folder} has {len(files)} files"


@pytest.mark.slow
def test_the_docs_build_without_a_warning(tmp_path: Path) -> None:
    program = BIN / "mkdocs"
    if not program.exists():
        pytest.skip("mkdocs is not installed")
    result = subprocess.run(
        [str(program), "build", "--strict", "--quiet", f"--site-dir={tmp_path}"],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {page.parent.name for page in tmp_path.glob("*/index.html")} >= {"architecture", "api"}
