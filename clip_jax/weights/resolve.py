"""Resolution of a model source (path, hub id, or fsspec URL) to a local path."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from clip_jax.arguments import shown, with_home
from clip_jax.errors import UserError, first_line
from clip_jax.files import stores
from clip_jax.files.disk import write_text
from clip_jax.files.options import RemoteOptions
from clip_jax.files.stores import Stat, Unavailable

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_HUB_PREFIXES = ("hf-hub:", "hf://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_REMOTE = RemoteOptions()
# If a source has weights in several formats, only the first format in this list is fetched.
_WEIGHTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"model(-\d+-of-\d+)?\.safetensors",
        r"open_clip_model(-\d+-of-\d+)?\.safetensors",
        r".*\.safetensors",
        r".*\.npz",
        r"pytorch_model(-\d+-of-\d+)?\.bin",
        r"open_clip_pytorch_model(-\d+-of-\d+)?\.bin",
        r".*\.(bin|pt|pth)",
    )
)
_DESCRIPTION = re.compile(r"(tokenizer/.*|[^/]*\.(json|txt|model|txt\.gz))")
# This marks one training checkpoint; the source may be the run, its checkpoints/ or the step.
_CHECKPOINT = re.compile(r"(?P<folder>((checkpoints/)?(?P<step>\d+)/)?)identity/_METADATA")
# This marks a checkpoint in the output folder of Hugging Face's Trainer.
_TRAINER_CHECKPOINT = re.compile(r"(?P<folder>checkpoint-(?P<step>\d+)/)config\.json")
_WEIGHT_SUFFIXES = (".safetensors", ".npz", ".bin", ".pt", ".pth", ".json")


def resolve_source(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local file or folder of `source`, which is downloaded first if it is remote.

    An existing path is returned as it is. `org/name`, `hf://org/name[@revision]` and
    `hf-hub:org/name` are hub repositories, cached by the hub's client and readable offline. Any
    other URL (`gs://`, `s3://`, …) goes to $CLIP_JAX_CACHE/sources and is fetched again only if its
    size or tag has changed. `revision`: a branch, tag or commit of a hub repository.

    Raises `UserError` if the source does not exist, cannot be reached, or needs a missing package.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"source={shown(source)}: must be a path, a URL or a hub id")
    typed = os.fspath(source)
    if isinstance(source, Path):  # Path collapses the slashes of a URL
        typed = re.sub(r"^([a-z0-9+]{2,}):/(?!/)", r"\1://", typed)
    hub_prefix = next((prefix for prefix in _HUB_PREFIXES if typed.startswith(prefix)), None)
    path = Path(with_home(typed.removeprefix("file://"), "source"))
    if hub_prefix is None:
        if path.exists():
            return path
        if path.is_symlink():
            raise UserError(f"{typed}: a link to {os.readlink(path)}, which does not exist")
        if _URL.match(typed) and not typed.startswith("file://"):
            if revision is not None:
                raise UserError(
                    f"revision={revision!r}: only hub repositories have one, not {typed}"
                )
            return _from_url(typed)
    repository = typed.removeprefix(hub_prefix or "").rstrip("/")
    looks_like_a_file = repository.endswith(_WEIGHT_SUFFIXES)
    if not _HUB_ID.fullmatch(repository) or (looks_like_a_file and hub_prefix is None):
        if hub_prefix is not None:
            raise UserError(f"{typed}: accepted is {hub_prefix}ORGANISATION/NAME")
        raise UserError(
            f"{typed}: no such file or folder{_nearest(path)}; "
            "nor is it a hub id (organisation/name) or a URL"
        )
    repository, _, at = repository.partition("@")
    try:
        return _from_hub(repository, revision or at or None)
    except UserError as error:
        if hub_prefix is not None:
            raise
        raise UserError(f"{error} (nor is {typed} a path here{_nearest(path)})") from error


def _nearest(path: Path) -> str:
    """ "; nearest is '…'" if the parent folder holds a similar name, else ""."""
    try:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        return ""
    found = difflib.get_close_matches(path.name, names, n=1)
    return f"; nearest is {str(path.parent / found[0])!r}" if found else ""


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files of a source, relative and with "/", that loading it needs.

    For a training run: the exported model, or else the newest complete checkpoint; likewise for
    output of Hugging Face's Trainer. Otherwise: configurations, tokenizers, and the weights in one
    format.
    """
    names = sorted(name for name in names if name and not name.endswith("/"))
    if "model/config.json" in names:
        return [name for name in names if name.startswith("model/")]
    steps = [match for match in map(_CHECKPOINT.fullmatch, names) if match]
    if steps:
        newest = max(steps, key=lambda match: int(match["step"] or 0))["folder"]
        return [name for name in names if name.startswith(newest)]
    weights = _one_format(names)
    steps = [match for match in map(_TRAINER_CHECKPOINT.fullmatch, names) if match]
    for match in sorted(steps, key=lambda match: int(match["step"]), reverse=True):
        folder = match["folder"]
        inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
        if not weights and _one_format(inside):
            return [folder + name for name in wanted_files(inside)]
    wanted = {name for name in names if _DESCRIPTION.fullmatch(name)} | set(weights)
    if "config.json" in wanted and weights and weights[0].startswith("model"):
        wanted.discard("open_clip_config.json")  # it describes the weights that are left out
    return sorted(wanted)


def _one_format(names: Iterable[str]) -> list[str]:
    """The top-level weight files, in the first format present."""
    top = [name for name in names if "/" not in name]
    of_each = ([name for name in top if pattern.fullmatch(name)] for pattern in _WEIGHTS)
    return next((found for found in of_each if found), [])


def _from_hub(repository: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{repository}: hub ids need huggingface_hub; run `pip install huggingface_hub`"
        ) from error
    try:
        # The client would retry a file listing for half a minute without a connection.
        about = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=20)
        names = [file.rfilename for file in about.siblings or ()]
    except Exception as error:
        _raise_if_refused(error, repository, revision)
        # The client's transport may raise anything if there is no connection.
        return _from_hub_cache(repository, revision, error)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=wanted_files(names)
            )
        )
    except Exception as error:
        _raise_if_refused(error, repository, revision)
        raise UserError(
            f"{repository}: the download failed ({first_line(error, with_type=True)}); run it again"
        ) from error


def _raise_if_refused(error: Exception, repository: str, revision: str | None) -> None:
    """Raises `UserError` if the hub itself refused; returns if it was not reached."""
    from huggingface_hub import errors

    for kind, answer in (
        (  # a subclass of RepositoryNotFoundError
            errors.GatedRepoError,
            "access to this hub repository is granted on request; ask for it on its page, then run"
            " `hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            f"has no revision {revision!r}; give a branch, tag or commit",
        ),
        (
            (errors.RepositoryNotFoundError, errors.HFValidationError),
            "the hub has no such repository, or it is private (then run `hf auth login`)",
        ),
    ):
        if isinstance(error, kind):
            raise UserError(f"{repository}: {answer}") from error


def _from_hub_cache(repository: str, revision: str | None, unreachable: Exception) -> Path:
    """The folder of an earlier download. Raises `UserError` with remedies if it has no weights."""
    import huggingface_hub

    # Formats are tried in turn: the client refuses a cached folder that lacks any wanted file.
    for weights in ("*.safetensors", "*.npz", "*.bin", "*.pt", "*.pth"):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    repository,
                    revision=revision,
                    local_files_only=True,
                    allow_patterns=["config.json", "open_clip_config.json", weights],
                )
            )
        except OSError:
            continue
        if any(folder.glob(weights)):
            return folder
    at = f" --revision {revision}" if revision else ""
    raise UserError(
        f"{repository}: not in the hub's cache on this machine, and the hub cannot be reached "
        f"({first_line(unreachable, with_type=True)}). Where there is a connection run"
        f" `hf download {repository}{at} --local-dir FOLDER` (formerly huggingface-cli download),"
        " or place config.json, "
        "model.safetensors, preprocessor_config.json and tokenizer.json (or vocab.json and "
        "merges.txt) in a folder; then give that FOLDER as the source"
    )


def _from_url(url: str) -> Path:
    """Downloads a file or folder; keeps local files with the same size and tag."""
    url = url.rstrip("/")
    try:
        found = stores.tree(url, _REMOTE)
        is_file = list(found) == [""]
        names = [""] if is_file else wanted_files(found)
        if not names:
            raise UserError(
                f"{url}: holds no weights that can be loaded (found {len(found)} files, among them "
                f"{', '.join(sorted(found)[:5])})"
            )
        base = url.partition("?")[0].rsplit("/", 1)[-1]
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        cache = stores.cache_folder() / "sources" / digest
        if is_file:
            _fetch({base: (url, found[""])}, cache)
        else:
            _fetch({name: (f"{url}/{name}", found[name]) for name in names}, cache / base)
    except Unavailable as error:
        raise UserError(str(error)) from error
    return cache / base


def _fetch(files: Mapping[str, tuple[str, Stat]], folder: Path) -> None:
    """Downloads what is missing or has changed; `files`: name in `folder` -> (URL, its stat)."""
    from tqdm import tqdm

    manifest_path = folder.with_name(f"{folder.name}.manifest.json")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    for name in set(manifest) - set(files):  # leftover of an older model under the same URL
        (folder / name).unlink(missing_ok=True)
        del manifest[name]
    due = [
        name
        for name, (_, stat) in files.items()
        if manifest.get(name) != [stat.size, stat.tag] or not _has_size(folder / name, stat.size)
    ]
    total = sum(files[name][1].size for name in due)
    what = due[0] if len(files) == 1 and due else folder.name
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=not due) as bar:
        for name in due:
            url, stat = files[name]
            path = folder / name
            if ".." in path.parts:
                raise UserError(f"{url}: a name that leads out of its folder; refused")
            with stores.told(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                stores.download(url, stat, path, _REMOTE, bar.update)
                manifest[name] = [stat.size, stat.tag]
                write_text(manifest_path, json.dumps(manifest, indent=1))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
