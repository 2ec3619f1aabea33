"""From what was typed to local files: paths, hub ids and URLs, all without a network."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clip_jax.errors import UserError
from clip_jax.files.options import RemoteOptions
from clip_jax.weights import resolve
from clip_jax.weights.resolve import resolve_source, wanted_files

fsspec = pytest.importorskip("fsspec")
huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("huggingface_hub.errors")


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_existing_paths_are_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("org/name") == Path("org/name")
    assert resolve_source(tmp_path / "org") == tmp_path / "org"
    assert resolve_source("~/org") == tmp_path / "org"
    assert resolve_source(f"file://{tmp_path}/org") == tmp_path / "org"


@pytest.mark.parametrize(
    "typed", ["./runs/frist", "runs/first.safetensors", "file:///runs", "~/x y"]
)
def test_paths_that_are_not_there(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file or folder.*hub id") as caught:
        resolve_source(typed)
    assert str(caught.value).startswith(typed)


def test_the_nearest_name_is_offered(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nearest is .*runs/first'"):
        resolve_source(tmp_path / "runs" / "frist")
    # It has the form of a hub id as well; both readings are answered.
    with pytest.raises(UserError, match=r"hub cannot be reached.*nearest is 'runs/first'"):
        resolve_source("runs/frist")


def remote(folder: str, files: dict[str, bytes]) -> None:
    filesystem = fsspec.filesystem("memory")
    for name, content in files.items():
        filesystem.pipe_file(f"/{folder}/{name}", content)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Store:
    """What is asked of the store in memory: `fetched` files in order, and faults to come."""

    def __init__(self, monkeypatch):
        self.fetched: list[str] = []
        self.faults: dict[str, int] = {}  # file -> how often it breaks off
        kind = type(fsspec.filesystem("memory"))
        cat_file = kind.cat_file

        def counting(_, path, *arguments, **options):
            name = path.rsplit("/", 1)[-1]
            self.fetched.append(name)
            if self.faults.get(name, 0):
                self.faults[name] -= 1
                raise ConnectionResetError("reset by peer")
            return cat_file(_, path, *arguments, **options)

        monkeypatch.setattr(kind, "cat_file", counting)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(resolve, "_REMOTE", RemoteOptions(attempts=2, backoff_seconds=0.01))
    yield Store(monkeypatch)
    fsspec.filesystem("memory").store.clear()


def test_a_remote_folder_is_fetched_once(tmp_path, store, capfd):
    files = {
        "config.json": b"{}",
        "model.safetensors": b"12345",
        "tokenizer/vocab.json": b"{}",
        "pytorch_model.bin": b"the same again",
        "picture.png": b"no need",
    }
    remote("bucket/model", files)
    folder = resolve_source("memory://bucket/model/")
    assert folder.name == "model"
    assert folder.is_relative_to(tmp_path / "cache" / "sources")
    wanted = {name: files[name] for name in list(files)[:3]}
    assert tree(folder) == wanted
    assert "model: 100%" in capfd.readouterr().err

    store.fetched.clear()
    assert resolve_source("memory://bucket/model") == folder
    assert store.fetched == []
    assert capfd.readouterr().err == ""

    remote("bucket/model", {"config.json": b"[]"})  # of the same size: the tag has changed
    (folder / "model.safetensors").write_bytes(b"torn")
    resolve_source("memory://bucket/model")
    assert sorted(store.fetched) == ["config.json", "model.safetensors"]
    assert tree(folder) == {**wanted, "config.json": b"[]"}


def test_files_of_an_older_model_go_away(store):
    shards = {f"model-0000{n}-of-00002.safetensors": b"x" for n in (1, 2)}
    remote("bucket/model", {"config.json": b"{}", "model.safetensors.index.json": b"{}", **shards})
    folder = resolve_source("memory://bucket/model")
    assert len(tree(folder)) == 4
    for name in ("model.safetensors.index.json", *shards):
        fsspec.filesystem("memory").rm(f"/bucket/model/{name}")
    remote("bucket/model", {"model.safetensors": b"y"})
    resolve_source("memory://bucket/model")
    assert set(tree(folder)) == {"config.json", "model.safetensors"}


def test_a_remote_file(store):
    remote("bucket", {"RN50.pt": b"weights", "other.pt": b"-"})
    path = resolve_source("memory://bucket/RN50.pt")
    assert path.name == "RN50.pt"
    assert path.read_bytes() == b"weights"
    resolve_source("memory://bucket/RN50.pt")
    assert store.fetched == ["RN50.pt"]


def test_an_interrupted_download_is_tried_again_and_leaves_no_half_file(tmp_path, store):
    remote("bucket/model", {"a.json": b"{}", "model.safetensors": b"12345"})
    store.faults = {"model.safetensors": 2}
    said = r"model\.safetensors: cannot be read after 2 attempts \(ConnectionResetError: reset by"
    with pytest.raises(UserError, match=said):
        resolve_source("memory://bucket/model")
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(left) == ["a.json", "model.manifest.json"]
    store.fetched.clear()
    store.faults = {"model.safetensors": 1}
    assert set(tree(resolve_source("memory://bucket/model"))) == {"a.json", "model.safetensors"}
    assert store.fetched == ["model.safetensors"] * 2  # the first file was kept


def test_remote_names_that_lead_outside_are_refused(tmp_path, monkeypatch, store):
    remote("bucket/model", {"model.safetensors": b"x"})
    kind = type(fsspec.filesystem("memory"))
    about = {"size": 1, "type": "file"}
    monkeypatch.setattr(
        kind, "find", lambda self, root, **_: {f"{root}/tokenizer/../../../evil.json": about}
    )
    with pytest.raises(UserError, match="leads out of its folder"):
        resolve_source("memory://bucket/model")
    assert not list(tmp_path.rglob("evil.json"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://bucket/nothing", "no such file or folder"),
        ("nosuch://bucket", "nosuch:// is unknown; known are .*gs, "),
    ],
)
def test_bad_urls(url, said):
    with pytest.raises(UserError, match=said) as caught:
        resolve_source(url)
    assert str(caught.value).startswith(url)


def test_remote_folder_without_weights_and_revision_of_a_url(store):
    remote("bucket/pictures", {"a.png": b"1", "b.png": b"2"})
    with pytest.raises(UserError, match=r"no weights.*found 2 files.*a\.png"):
        resolve_source("memory://bucket/pictures")
    with pytest.raises(UserError, match="revision='v1'"):
        resolve_source("memory://bucket/pictures", revision="v1")


@pytest.mark.parametrize(("url", "package"), [("gs://b/m", "gcsfs"), ("s3://b/m", "s3fs")])
def test_packages_that_are_missing_are_named(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    for given in (url, Path(url)):
        with pytest.raises(UserError, match=rf"^{url}: .*pip install 'clip_jax\[{package[:2]}"):
            resolve_source(given)


COMMON = "README.md config.json merges.txt onnx/model.onnx onnx/config.json"
SHARDS = "model-00001-of-00002.safetensors model-00002-of-00002.safetensors"
CHECKPOINT = "{0}/identity/_METADATA {0}/params/x"
TRAINER = "{0}/config.json {0}/model.safetensors"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (
            f"{COMMON} model.safetensors pytorch_model.bin tf_model.h5",
            "config.json merges.txt model.safetensors",
        ),
        (
            f"{COMMON} pytorch_model.bin training_args.bin",
            "config.json merges.txt pytorch_model.bin",
        ),
        (
            "open_clip_config.json open_clip_model.safetensors open_clip_pytorch_model.bin",
            "open_clip_config.json open_clip_model.safetensors",
        ),
        (  # both layouts of one model: transformers' is taken, and its description alone
            f"{COMMON} model.safetensors open_clip_config.json open_clip_model.safetensors",
            "config.json merges.txt model.safetensors",
        ),
        (
            f"{SHARDS} x/y.json model.safetensors.index.json model.fp16.safetensors spiece.model",
            f"{SHARDS} model.safetensors.index.json spiece.model",
        ),
        ("PE-Core-L14-336.pt bpe.txt.gz a.npz", "a.npz bpe.txt.gz"),
        (
            "model/config.json model/tokenizer/t.json checkpoints/5/identity/_METADATA",
            "model/config.json model/tokenizer/t.json",
        ),
        (
            f"{CHECKPOINT.format('checkpoints/5')} {CHECKPOINT.format('checkpoints/10')}"
            " checkpoints/15/params/x metrics.jsonl",
            CHECKPOINT.format("checkpoints/10"),
        ),
        ("identity/_METADATA params/d/1", "identity/_METADATA params/d/1"),
        (  # the newest whole checkpoint of a Trainer's output
            f"{TRAINER.format('checkpoint-500')} {TRAINER.format('checkpoint-1000')} runs/x.json"
            " checkpoint-1000/optimizer.pt checkpoint-1500/config.json",
            TRAINER.format("checkpoint-1000"),
        ),
        (
            f"config.json model.safetensors {TRAINER.format('checkpoint-5')}",
            "config.json model.safetensors",
        ),
        ("folder/", ""),
    ],
)
def test_only_files_that_matter(names, wanted):
    assert wanted_files(names.split()) == sorted(wanted.split())


def hub_cache(root: Path, repository: str, files: dict[str, bytes], revision="main") -> Path:
    """A repository in the hub's cache on disk, as its client lays it out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(commit)
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content)
    return snapshot


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("typed", ["org/name", "hf://org/name", "hf-hub:org/name"])
def test_hub_ids_are_read_from_the_cache_offline(tmp_path, typed, weights):
    snapshot = hub_cache(tmp_path / "hub", "org/name", {"config.json": b"{}", weights: b"x"})
    assert resolve_source(typed) == snapshot


def test_hub_revisions(tmp_path):
    snapshot = hub_cache(tmp_path / "hub", "org/name", {"model.safetensors": b"x"}, "v1.0")
    assert resolve_source("org/name", revision="v1.0") == snapshot
    assert resolve_source("hf://org/name@v1.0") == snapshot
    with pytest.raises(UserError, match=r"hf download org/name --revision v2"):
        resolve_source("org/name", revision="v2")


def test_hub_id_that_is_not_in_the_cache_says_what_to_place_where(tmp_path):
    hub_cache(tmp_path / "hub", "org/half", {"config.json": b"{}"})
    for repository in ("org/none", "org/half"):
        with pytest.raises(UserError) as caught:
            resolve_source(repository)
        message = str(caught.value)
        assert message.startswith(repository)
        for part in (f"hf download {repository}", "config.json", "model.safetensors", "tokenizer"):
            assert part in message
        assert "\n" not in message


def listing(*names):
    """What the hub answers about a repository with these files."""
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])


def test_online_the_files_that_matter_are_asked_for(tmp_path, monkeypatch):
    asked = {}

    def about(self, repository, revision=None, timeout=None):
        asked["list"] = (repository, revision)
        return listing("config.json", "model.safetensors", "pytorch_model.bin", "README.md")

    def download(repository, revision=None, allow_patterns=None):
        asked["download"] = (repository, revision, allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", about)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_source("hf-hub:org/name", revision="main") == tmp_path
    assert asked["list"] == ("org/name", "main")
    assert asked["download"] == ("org/name", "main", ["config.json", "model.safetensors"])


RESPONSE = SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize("step", ["model_info", "snapshot_download"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("RepositoryNotFoundError", "no such repository, or it is private"),
        ("GatedRepoError", "granted on request.*hf auth login"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
    ],
)
def test_what_the_hub_answers_is_one_line(monkeypatch, step, kind, said):
    def refuse(*_, **__):
        raise getattr(huggingface_hub.errors, kind)(
            "404 Client Error\nrequest id", response=RESPONSE
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: listing("x.npz"))
    owner = huggingface_hub if step == "snapshot_download" else huggingface_hub.HfApi
    monkeypatch.setattr(owner, step, refuse)
    with pytest.raises(UserError, match=f"^org/name: .*{said}") as caught:
        resolve_source("hf://org/name", revision="v9")
    assert "\n" not in str(caught.value)


def test_a_download_that_breaks_off(monkeypatch):
    def breaking(*_, **__):
        raise OSError("disk full\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: listing("x.npz"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", breaking)
    with pytest.raises(UserError, match=re.escape("(OSError: disk full); run it again")):
        resolve_source("org/name")


@pytest.mark.parametrize("typed", ["hf://name", "hf-hub:a/b/c", "hf://../x"])
def test_malformed_hub_ids(typed):
    with pytest.raises(UserError, match=r"accepted is .*ORGANISATION/NAME"):
        resolve_source(typed)


@pytest.mark.parametrize("source", [None, 3, "", "~nosuch/x", b"x", ["a"], Path("~nosuch") / "x"])
def test_what_is_no_source(source: object) -> None:
    with pytest.raises(UserError, match="source=") as caught:
        resolve_source(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
