"""Images on the web that are dead, slow or endless cost a run little time."""

import time
from pathlib import Path

import pytest
from loopback import Loopback
from shards import png

from clip_jax.data.sources import linked_images
from clip_jax.data.sources.linked_images import read_linked_image
from clip_jax.errors import DecodeError
from clip_jax.files.options import RemoteOptions


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linked_images, "_failing", {})
    monkeypatch.setattr(linked_images, "_SECONDS", 0.3)
    monkeypatch.setattr(linked_images, "_PAUSE_SECONDS", 0.01)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(1))
    with Loopback(tmp_path) as found:
        yield found


def refusal(url: str) -> str:
    with pytest.raises(DecodeError) as caught:
        read_linked_image(url, RemoteOptions())
    assert caught.value.kind == "image_missing"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_come_and_hosts_may_fail_once(server: Loopback) -> None:
    for fault in ("", "500", "cut", "stall"):
        server.faults["a.png"] = [fault] if fault else []
        assert read_linked_image(f"{server.url}/a.png", RemoteOptions()) == png(1)
    assert server.requests["a.png"] == 7


def test_the_defaults_of_shards_are_not_those_of_images(server: Loopback) -> None:
    server.faults = {"a.png": ["500…"], "b.png": ["stall…"]}
    start = time.monotonic()
    assert "500" in refusal(f"{server.url}/a.png")
    assert "timed out" in refusal(f"{server.url}/b.png")
    assert time.monotonic() - start < 2
    assert server.requests == {"a.png": 2, "b.png": 2}


def test_a_dead_host_is_left_alone_for_a_while(server: Loopback, monkeypatch) -> None:
    server.faults = {"a.png": ["500…"]}
    for _ in range(3):
        refusal(f"{server.url}/a.png")
    assert "127.0.0.1" in refusal(f"{server.url}/b.png")
    assert server.requests["b.png"] == 0
    monkeypatch.setattr(linked_images, "_failing", {})
    monkeypatch.setattr(linked_images, "_REST_SECONDS", 0.0)
    for _ in range(4):
        refusal(f"{server.url}/a.png")
    assert read_linked_image(f"{server.url}/b.png", RemoteOptions()) == png(1)
    assert linked_images._failing == {}


def test_what_is_not_there_is_an_answer(server: Loopback) -> None:
    for _ in range(5):
        assert "the server says 404" in refusal(f"{server.url}/none.png")
    assert linked_images._failing == {}


def test_bytes_without_end(server: Loopback, monkeypatch) -> None:
    monkeypatch.setattr(linked_images, "MAX_IMAGE_BYTES", 50)
    assert "has more than 50 bytes" in refusal(f"{server.url}/a.png")
    assert server.requests["a.png"] == 1


def test_a_server_that_drips(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of a socket ever comes."""
    monkeypatch.setattr(linked_images, "_ALL_SECONDS", 0.6)
    server.faults = {"a.png": ["drip…"]}
    start = time.monotonic()
    refusal(f"{server.url}/a.png")
    assert time.monotonic() - start < 3


def test_no_url(server: Loopback) -> None:
    for url in ("http://", "http://[::1", "http://127.0.0.1:1/größer 1.png"):
        refusal(url)
