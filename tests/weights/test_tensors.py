"""Named tensors in files: every format, damage, hostile pickles, the memory that reading takes."""

import argparse
import io
import json
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clip_jax.errors import UserError
from clip_jax.weights.files import pytorch as torch_files
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.files.tensors import find_weights, open_tensors

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


def examples() -> dict[str, np.ndarray]:
    """One tensor a dtype, in an order that would misalign them, a scalar and an empty one."""
    rng = np.random.default_rng(0)
    arrays = {
        f"block.{name}": (rng.standard_normal((3, 5)) * 9).astype(
            ml_dtypes.bfloat16 if name == "bfloat16" else name
        )
        for name in reversed(DTYPES)
    }
    return {**arrays, "logit_scale": np.array(2.6593, np.float32), "none": np.zeros((0, 4))}


def read_all(path: Path) -> dict[str, np.ndarray]:
    tensors = open_tensors(path)
    return {name: tensors.read(name) for name in tensors.shapes}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].flags.c_contiguous, name
        np.testing.assert_array_equal(
            found[name].reshape(-1).view(np.uint8), np.ravel(array).view(np.uint8), err_msg=name
        )


def test_safetensors_written_and_read_here_and_by_the_library(tmp_path):
    path = tmp_path / "model.safetensors"
    assert save_safetensors(path, examples()) == [path]
    assert_same(read_all(path), examples())
    assert open_tensors(path).shapes["logit_scale"] == ()
    assert_same(safetensors.numpy.load_file(path), examples())
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert list(tmp_path.iterdir()) == [path]
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file  # demands that every tensor is aligned

    assert load_file(path)["block.bfloat16"].dtype == torch.bfloat16
    renamed = tmp_path / "renamed.bin"  # the content decides
    safetensors.numpy.save_file(examples(), renamed)
    assert_same(read_all(renamed), examples())
    whole = path.read_bytes()
    for keep in (20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match="damaged or truncated"):
            open_tensors(path)


def test_writing_streams_transposed_views_and_generators(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "a" / "b.safetensors"
    save_safetensors(path, ((f"x{n}", array.T) for n in range(3)), metadata={})
    assert_same(read_all(path), {f"x{n}": array.T for n in range(3)})
    with pytest.raises(UserError, match="tensor x was given twice"):
        save_safetensors(path, iter([("x", array), ("x", array)]))
    with pytest.raises(UserError, match="x is of dtype complex128"):
        save_safetensors(path, {"x": array.astype(complex)})
    assert list(path.parent.iterdir()) == [path]  # a failed write leaves what was there


def test_shards_and_their_index(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {f"t{n}": np.full((10, 10), n, np.float32) for n in range(7)}
    files = save_safetensors(path, tensors.items(), max_shard_bytes=900)
    assert [file.name for file in files] == [
        f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)
    ]
    index = tmp_path / "model.safetensors.index.json"
    assert sorted(tmp_path.iterdir()) == [*files, index]
    about = json.loads(index.read_text())
    assert about["metadata"]["total_size"] == 7 * 400
    assert about["weight_map"]["t6"] == "model-00004-of-00004.safetensors"
    assert find_weights(tmp_path, ["nothing.bin", "model.safetensors"]) == index
    assert_same(read_all(index), tensors)

    assert save_safetensors(path, tensors, max_shard_bytes=None) == [path]  # wins over shards
    assert find_weights(tmp_path, ["model.safetensors"]) == path
    assert find_weights(tmp_path, ["model.bin"]) is None


def test_bad_indices_are_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    tensors = {f"t{n}": np.zeros((10, 10), np.float32) for n in range(4)}
    files = save_safetensors(tmp_path / "model.safetensors", tensors, max_shard_bytes=800)

    save_safetensors(files[1], {"t0": tensors["t0"], "t2": tensors["t2"], "t3": tensors["t3"]})
    with pytest.raises(UserError, match=r"-00002-.*also in another shard: t0"):
        open_tensors(index)
    save_safetensors(files[1], {"t2": tensors["t2"]})
    with pytest.raises(UserError, match="in none of its shards: t3"):
        open_tensors(index)
    files[1].unlink()
    with pytest.raises(UserError, match=r"1 of 2 shards are missing.*model-00002-of-00002"):
        open_tensors(index)
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        open_tensors(index)
    index.write_text("[]")
    with pytest.raises(UserError, match="no index of shards"):
        open_tensors(index)


def archive(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"\x08", "damaged or truncated"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.bin", b"<!DOCTYPE html><html>", "is a web page"),
        ("model.safetensors", b"\n<html>", "is a web page"),
        ("model.pt", b"Entry not found", "not weights of a known kind"),
        ("model.pt", b"PK\x03\x04 cut off", "damaged or truncated"),
        ("model.pt", b"\x80\x02 cut off", "damaged or truncated|more than tensors"),
        ("model.pt", archive({"readme.txt": b"hello"}), "neither torch nor numpy"),
        ("none.safetensors", None, "cannot be read"),
        (".", None, "cannot be read"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_of_big_vision(tmp_path):
    path = tmp_path / "weights.npz"
    half = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    arrays = {
        "params/img/embedding/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "params/t": np.array([2.3], np.float32),
        "params/b": np.array(-10.0, np.float32),
        "params/txt/half": half.view("V2"),
        "params/txt/fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "opt/0/count": np.array(5),
    }
    wanted = {k.removeprefix("params/"): v for k, v in arrays.items() if k != "opt/0/count"}
    wanted["txt/half"] = half
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays)
        assert_same(read_all(path), wanted)
    np.savez(path, **{"img/cls": arrays["params/b"]})
    assert_same(read_all(path), {"img/cls": arrays["params/b"]})

    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged or truncated"):
        open_tensors(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"x\.npy holds pickled objects"):
        open_tensors(path)
    np.savez(path, x=np.zeros(1000, np.float32))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_all(path)


def torch_examples():
    torch = pytest.importorskip("torch")
    arrays = {k: v for k, v in examples().items() if v.dtype != ml_dtypes.bfloat16}
    state = {name: torch.from_numpy(np.array(v)) for name, v in arrays.items()}
    half = examples()["block.bfloat16"]
    state["block.bfloat16"] = torch.from_numpy(half.view(np.int16)).view(torch.bfloat16)
    state["turned"] = torch.arange(12.0).reshape(3, 4).T
    arrays["turned"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    return torch, state, {**arrays, "block.bfloat16": half}


def test_torch_state_dictionaries(tmp_path, monkeypatch):
    torch, state, wanted = torch_examples()
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    assert_same(read_all(path), wanted)
    monkeypatch.setattr(torch_files, "REMAP_BYTES", 0)  # mapped anew after every tensor
    assert_same(read_all(path), wanted)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(read_all(path), wanted)


def test_torch_files_without_tensors_or_torn_are_refused(tmp_path):
    torch, state, _ = torch_examples()
    path = tmp_path / "model.pt"
    torch.save({"epoch": 1}, path)
    with pytest.raises(UserError, match=r"holds no state dictionary.*epoch"):
        open_tensors(path)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or truncated"):
        open_tensors(path)


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.filterwarnings("error")
def test_pickles_never_run(tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    evil = {"weight": torch.zeros(2), "payload": Payload(marker)}
    zipped, bare, legacy = (tmp_path / name for name in ("a.bin", "b.pt", "c.pth"))
    torch.save(evil, zipped)
    bare.write_bytes(pickle.dumps(Payload(marker)))
    torch.save(evil, legacy, _use_new_zipfile_serialization=False)
    script = tmp_path / "d.pt"  # shaped as TorchScript, the pickle in both places
    pickles = dict.fromkeys(("d/data.pkl", "d/constants.pkl"), pickle.dumps(Payload(marker)))
    script.write_bytes(archive({**pickles, "d/version": b"3\n"}))
    objects = tmp_path / "e.npz"
    np.savez(objects, x=np.array([Payload(marker)], dtype=object))
    paths = [zipped, bare, legacy, script, objects]
    # Numbers of numpy and arguments are let through; not so code among them.
    for number, hidden in enumerate(
        (
            np.array([Payload(marker)], dtype=object),
            {"best": np.float64(1), "x": Payload(marker)},
            argparse.Namespace(x=Payload(marker)),
        )
    ):
        for is_zip in (True, False):
            path = tmp_path / f"{number}{is_zip}.bin"
            torch.save({**evil, "payload": hidden}, path, _use_new_zipfile_serialization=is_zip)
            paths.append(path)
    for path in paths:
        with pytest.raises(UserError) as caught:
            read_all(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not marker.exists(), path
    with pytest.raises(UserError, match=r"asks for .*open"):
        open_tensors(zipped)
    pickle.loads(bare.read_bytes()).close()  # the payload is real
    assert marker.exists()


def test_torchscript_that_would_run_is_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Runs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight

        @torch.jit.export
        def __getstate__(self):
            return (self.weight, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]):
            self.training = state[1]

    path = tmp_path / "runs.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Runs()).save(str(path))
    with pytest.raises(UserError, match="__setstate__"):
        open_tensors(path)


def test_torch_is_optional(tmp_path, monkeypatch):
    torch, state, _ = torch_examples()
    torch.save(state, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install torch.*safetensors"):
        open_tensors(tmp_path / "model.bin")


GROWTH = """
import sys
from pathlib import Path
from clip_jax.weights.files.tensors import open_tensors
from clip_jax.weights.files.safetensors_writer import save_safetensors
def peak_mib():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
tensors = open_tensors(Path(sys.argv[1]))
tensors.read(next(iter(tensors.shapes)))
before = peak_mib()
for name in tensors.shapes:
    tensors.read(name).sum()
print(peak_mib() - before)
pairs = ((name, tensors.read(name)) for name in tensors.shapes)
save_safetensors(Path(sys.argv[2]), pairs)
print(peak_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_reading_and_writing_keep_one_tensor_in_memory(tmp_path):
    path, count, mib = tmp_path / "model.safetensors", 24, 16
    tensor = np.ones((mib, 2**18), np.float32)
    save_safetensors(path, ((f"t{n}", tensor) for n in range(count)))
    assert path.stat().st_size > count * mib * 2**20
    command = [sys.executable, "-c", GROWTH, str(path), str(tmp_path / "copy.safetensors")]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    read, written = map(float, output.split())
    assert read < 3 * mib
    assert written < 5 * mib
