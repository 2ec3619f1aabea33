"""A store that fails, stalls and cuts off: asked again, then left; copies within their bound."""

import os
import time
from pathlib import Path

import pytest
from loopback import Loopback

from clip_jax.errors import UserError
from clip_jax.files import stores
from clip_jax.files.disk import ASIDE_PREFIX
from clip_jax.files.options import RemoteOptions
from clip_jax.files.stores import Unavailable

pytest.importorskip("aiohttp")

QUICK = RemoteOptions(attempts=3, backoff_seconds=0.01, timeout_seconds=0.5)
DATA = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path, cache: Path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.tar").write_bytes(DATA)
    with Loopback(tmp_path / "files") as server:
        yield server


@pytest.mark.parametrize("fault", ["500", "stall", "cut"])
def test_a_fault_is_asked_again_and_one_that_stays_is_named(server: Loopback, fault: str) -> None:
    url = f"{server.url}/a.tar"
    server.faults["a.tar"] = [fault, fault]
    assert stores.read_range(url, 10, 500, QUICK) == DATA[10:500]
    assert server.requests["a.tar"] == 3
    server.faults["a.tar"] = [f"{fault}…"]
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"a\.tar: cannot be read after 3 attempts"):
        stores.fetch(url, QUICK)
    assert time.monotonic() - start < 5
    assert not list((stores.cache_folder() / "shards").glob("*a.tar*"))  # nothing half done
    server.faults["a.tar"] = [fault]
    assert stores.fetch(url, QUICK).read_bytes() == DATA


@pytest.mark.parametrize(("has_ranges", "requests"), [(True, 3), (False, 1)])
def test_pieces_or_the_whole_of_a_server_without_ranges(
    server: Loopback, monkeypatch: pytest.MonkeyPatch, has_ranges: bool, requests: int
) -> None:
    monkeypatch.setattr(stores, "_PIECE_BYTES", 4096)
    server.has_ranges = has_ranges
    assert stores.fetch(f"{server.url}/a.tar", QUICK).read_bytes() == DATA
    assert server.requests["a.tar"] == requests
    if not has_ranges:
        with pytest.raises(Unavailable, match="10240 bytes came instead of 490"):
            stores.read_range(f"{server.url}/a.tar", 10, 500, QUICK)


@pytest.mark.parametrize("fault", ["500", "stall"])
def test_a_fault_while_asking_for_the_size_is_asked_again(server: Loopback, fault: str) -> None:
    """fsspec asks by HEAD, then by GET, and says of any failure that there is no such file."""
    url = f"{server.url}/a.tar"
    server.faults = {"HEAD a.tar": [fault, fault], "a.tar": ["500", "500"]}
    assert stores.stat(url, QUICK).size == len(DATA)
    server.faults = {"HEAD a.tar": ["500…"], "a.tar": ["500…"]}
    with pytest.raises(Unavailable, match=r"cannot be read after 3 attempts \(.*500"):
        stores.stat(url, QUICK)


def test_what_is_gone_is_not_asked_again(server: Loopback) -> None:
    server.faults = {"HEAD a.tar": ["gone…"], "a.tar": ["gone…"]}
    with pytest.raises(Unavailable, match=r"a\.tar: no such file"):
        stores.stat(f"{server.url}/a.tar", QUICK)
    assert server.requests["a.tar"] == 1
    with pytest.raises(Unavailable, match=r"b\.tar: no such file"):
        stores.stat(f"{server.url}/b.tar", QUICK)


def test_a_server_that_refuses_is_asked_again(tmp_path: Path) -> None:
    with Loopback(tmp_path) as server:
        url = server.url
    with pytest.raises(Unavailable, match=r"cannot be read after 3 attempts \(Client"):
        stores.stat(f"{url}/a.tar", QUICK)


@pytest.mark.parametrize("has_tags", [True, False])  # else the time tells
def test_copies_are_kept_and_made_anew_when_the_file_is(
    server: Loopback, tmp_path: Path, has_tags: bool
) -> None:
    server.has_tags = has_tags
    url = f"{server.url}/a.tar"
    first = stores.fetch(url, QUICK)
    assert stores.fetch(url, QUICK) == first
    assert server.requests["a.tar"] == 1
    (tmp_path / "files" / "a.tar").write_bytes(DATA[::-1])
    os.utime(tmp_path / "files" / "a.tar", (10**9, 10**9))
    assert stores.fetch(url, QUICK).read_bytes() == DATA[::-1]


def test_the_oldest_copies_give_way(server: Loopback, tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / "files" / f"{name}.tar").write_bytes(DATA)
    bounded = RemoteOptions(cache_gib=2.5 * len(DATA) / 2**30, attempts=1)
    copies = {name: stores.fetch(f"{server.url}/{name}.tar", bounded) for name in "ab"}
    stores.fetch(f"{server.url}/a.tar", bounded)  # used again
    copies["c"] = stores.fetch(f"{server.url}/c.tar", bounded)
    assert [name for name in "abc" if copies[name].exists()] == ["a", "c"]
    with pytest.raises(Unavailable, match="more than the whole cache"):
        stores.fetch(f"{server.url}/d.tar", RemoteOptions(cache_gib=1e-6))


def test_what_a_killed_download_left_gives_way(server: Loopback, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "files" / f"{name}.tar").write_bytes(DATA)
    bounded = RemoteOptions(cache_gib=2.5 * len(DATA) / 2**30, attempts=1)
    kept = stores.fetch(f"{server.url}/a.tar", bounded)
    parts = [kept.with_name(f"{ASIDE_PREFIX}{number}") for number in (1, 2)]
    for part, age in zip(parts, (7200, 60), strict=True):
        part.write_bytes(DATA)
        os.utime(part, (time.time() - age,) * 2)
    stores.fetch(f"{server.url}/b.tar", bounded)
    assert [part.exists() for part in parts] == [False, True]


class HfUriError(ValueError):
    """As huggingface_hub's."""


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("hf://x", HfUriError("Invalid"), r"hf://x: is no address there \(HfUriError: Invalid"),
        ("s3://b/a", NoCredentialsError("Unable to"), r"refuses us .*AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_asking_again_does_not_mend_is_asked_once(
    url: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Store:
        def info(self, path: str) -> None:
            asked.append(path)
            raise error

    monkeypatch.setattr(stores, "_filesystem", lambda url: (Store(), url))
    with pytest.raises((UserError, Unavailable), match=message):
        stores.stat(url, QUICK)
    assert asked == [url]


def test_an_unknown_scheme() -> None:
    with pytest.raises(UserError, match=r"nosuch:// is unknown; known are .*s3"):
        stores.stat("nosuch://bucket/a", QUICK)


@pytest.mark.parametrize("name", ["attempts", "cache_gib", "timeout_seconds"])
def test_numbers_out_of_range(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}=-1: must be at least"):
        RemoteOptions(**{name: -1})
