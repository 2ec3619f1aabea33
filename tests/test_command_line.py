"""How programs begin and end."""

from __future__ import annotations

import pytest

from clip_jax import command_line
from clip_jax.errors import UserError


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
