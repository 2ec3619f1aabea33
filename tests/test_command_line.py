"""How programs begin and end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clip_jax import command_line
from clip_jax.errors import UserError


@pytest.mark.parametrize(
    ("installed", "vendor", "expected"),
    [
        ({"libtpu"}, "0x8086", "cpu"),
        ({"libtpu"}, "0x1ae0", None),
        ({"libtpu", "jax_plugins"}, "0x8086", None),
        (set(), "0x8086", None),
    ],
    ids=["compiler only", "tpu", "gpu", "nothing"],
)
def test_an_idle_tpu_compiler_is_left_alone(
    installed: set[str],
    vendor: str,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "0000:00:01.0").mkdir()
    (tmp_path / "0000:00:01.0" / "vendor").write_text(vendor + "\n")
    monkeypatch.setattr(command_line, "find_spec", lambda name: name in installed or None)
    monkeypatch.delenv("JAX_PLATFORMS")
    command_line._without_idle_tpu(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == expected


def raising(error: BaseException) -> None:
    raise error


def test_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_parse", lambda argv: None)
    ends = {
        130: (KeyboardInterrupt(), "\nstopped here\n"),
        2: (UserError("key=3:\n must be 4"), "error: key=3: must be 4\n"),
    }
    for code, (error, line) in ends.items():
        with pytest.raises(SystemExit) as ended:
            command_line.run(lambda error=error: raising(error), ["program"], "stopped here")
        assert ended.value.code == code
        assert capsys.readouterr().err == line
