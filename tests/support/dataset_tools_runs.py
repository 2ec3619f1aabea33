"""What the tests of `python -m clip_jax.data` share: sets made on the spot, runs in-process."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from pictures import encode, photo
from shards import write_shard

from clip_jax.dataset_tools import program


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what it said."""

    code: int
    out: str
    err: str


Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object, **flags: object) -> Ended:
    """`python -m clip_jax.data` with these arguments, in this process."""
    capsys.readouterr()
    words = [*map(str, arguments), *(f"--{name}={value}" for name, value in flags.items())]
    with pytest.raises(SystemExit) as ended:
        program.run(["data", *words], "about the program")
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, said.out, said.err)


def mistake(capsys: Capture, *arguments: object, **flags: object) -> str:
    """The one line that a user's mistake ends with."""
    ended = run(capsys, *arguments, **flags)
    lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert ended.code == 2
    assert len(lines) == 1
    assert ended.err.splitlines()[-1] == lines[0], "nothing comes after the error"
    assert "Traceback" not in ended.err
    return lines[0]


def make_pairs(path: Path, pairs: dict[str, tuple[bytes, bytes]]) -> Path:
    """An archive of key -> (JPEG or PNG, caption)."""
    return write_shard(
        path, [(key, {"jpg": image, "txt": text}) for key, (image, text) in pairs.items()]
    )


def make_shards(folder: Path, *, samples: int = 6, shards: int = 2, side: int = 48) -> Path:
    """Good samples: JPEGs with a caption and metadata, of different sizes."""
    for shard in range(shards):
        content = []
        for number in range(shard, samples, shards):
            key = f"{number:04d}"
            image = encode(photo(side + number, side, seed=number), "JPEG", quality=90)
            caption = f"a photo number {number} of many colours"
            fields = json.dumps({"class": f"c{number % 3}", "place": number}).encode()
            content.append((key, {"jpg": image, "txt": caption.encode(), "json": fields}))
        write_shard(folder / f"{shard:05d}.tar", content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
