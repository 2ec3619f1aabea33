"""Single images on the web, which rows name by URL; many links are dead, so timeouts are short.

A shard is worth minutes of retries (`stores.py`); one image of millions is not.
"""

import time
import urllib.error
import urllib.parse
import urllib.request

from clip_jax.errors import DecodeError, one_line
from clip_jax.files.options import RemoteOptions
from clip_jax.files.stores import in_time
from clip_jax.files.telemetry import telemetry

MAX_IMAGE_BYTES = 64 << 20
_ATTEMPTS = 2
_SECONDS = 2.0  # without a byte, connecting included, per attempt
_ALL_SECONDS = 5.0  # of all attempts
_PAUSE_SECONDS = 0.25

# A host with this many failures in a row is skipped for a while.
_FAILURES = 3
_REST_SECONDS = 300.0
_MAX_HOSTS = 10_000  # remembered

_HEADERS = {"User-Agent": "clip_jax", "Accept": "image/*,*/*;q=0.5"}
_BUSY = (408, 425, 429)  # worth a retry, as are all from 500 on
_SAFE = "%/:?=&#+,;@!$'()*[]~"  # not quoted in a URL; other characters, such as spaces, are
_PIECE_BYTES = 1 << 16


_failing: dict[str, tuple[int, float]] = {}  # host -> failures in a row, time of the next attempt


class _Refused(Exception):
    """An answer of the host that it has no such image for us."""


def read_linked_image(url: str, remote: RemoteOptions) -> bytes:
    """Reads the file at an http:// or https:// URL, within 5 s whatever the host does.

    Raises DecodeError if the download fails or exceeds `MAX_IMAGE_BYTES`, or the host has recently
    failed several times.
    """
    end = time.monotonic() + _ALL_SECONDS
    timeout = min(_SECONDS, remote.timeout_seconds)
    host = url.split("/")[2]
    if host in _failing and time.monotonic() < _failing[host][1]:
        raise DecodeError(f"{url}: {host} has not answered before", "image_missing")
    reason = ""
    for attempt in range(min(_ATTEMPTS, remote.attempts)):
        if attempt:
            telemetry.add(store_retries=1)
            time.sleep(_PAUSE_SECONDS)
        try:
            # A thread limits the time, because DNS lookups have no timeout.
            data = in_time(lambda: _get(url, timeout, end), max(timeout, end - time.monotonic()))
        except _Refused as error:
            _failing.pop(host, None)
            raise DecodeError(f"{url}: {error}", "image_missing") from None
        except Exception as error:  # from sockets, TLS, HTTP, or an invalid URL
            reason = one_line(error)
            if time.monotonic() + timeout > end:
                break
            continue
        _failing.pop(host, None)
        telemetry.add(bytes_fetched=len(data))
        return data
    _remember(host)
    raise DecodeError(f"{url}: cannot be read ({reason})", "image_missing")


def _remember(host: str) -> None:
    if len(_failing) >= _MAX_HOSTS:
        _failing.pop(next(iter(_failing)), None)
    failures = _failing.get(host, (0, 0.0))[0] + 1
    rests = failures >= _FAILURES
    _failing[host] = (failures, time.monotonic() + _REST_SECONDS if rests else 0.0)


def _get(url: str, timeout: float, end: float) -> bytes:
    """Reads a URL until `end`, then discards a partial file. Raises _Refused or nearly anything."""
    request = urllib.request.Request(urllib.parse.quote(url, safe=_SAFE), headers=_HEADERS)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            declared = int(response.headers.get("Content-Length") or 0)
            data = bytearray()
            while declared <= MAX_IMAGE_BYTES and len(data) <= MAX_IMAGE_BYTES:
                piece = response.read1(_PIECE_BYTES)
                if not piece:
                    break
                data += piece
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {_ALL_SECONDS:g} s")
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code not in _BUSY:
            raise _Refused(f"the server says {error.code} {error.reason}") from None
        raise
    if max(declared, len(data)) > MAX_IMAGE_BYTES:
        raise _Refused(f"has more than {MAX_IMAGE_BYTES:,} bytes")
    if len(data) < declared:
        raise OSError(f"{len(data)} bytes came instead of {declared}")
    return bytes(data)
