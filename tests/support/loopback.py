"""A web server on this machine that serves files, and fails as it is told to."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Loopback:
    """Serves the files of a folder under `url`.

    Attributes:
      faults: name -> list of what becomes of the next GET requests for it: "500", "stall" (nothing
        comes), "cut" (half of what was promised), "gone" (as if it were not there), "drip" (a byte
        now and then, without a length or an end); the last stays for ever if it ends with "…".
        "HEAD NAME" -> the same of HEAD requests.
      requests: name -> GET requests so far.
      has_tags: whether it sends ETags; without, the time of the last change only.
      has_ranges: whether it sends parts of a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.has_tags = self.has_ranges = True
        self.requests: Counter[str] = Counter()
        self._end = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                server.answer(self, body=False)

            def do_GET(self) -> None:
                server.answer(self, body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, name: str) -> str:
        waiting = self.faults.get(name, [])
        if not waiting:
            return ""
        return waiting[0].rstrip("…") if waiting[0].endswith("…") else waiting.pop(0)

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        name = handler.path.lstrip("/")
        path = self.folder / name
        if not path.is_file():
            handler.send_error(404)
            return
        data = path.read_bytes()
        asked = handler.headers.get("Range", "") if self.has_ranges else ""
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        part = data[int(span[1]) : int(span[2]) + 1] if span else data
        if body:
            self.requests[name] += 1
        fault = self._fault(name if body else f"HEAD {name}")
        if fault in ("500", "gone"):
            handler.send_error(500 if fault == "500" else 404)
            return
        if fault == "stall":
            self._end.wait(30)
            return
        if fault == "drip":
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(OSError):
                while not self._end.wait(0.05):
                    handler.wfile.write(b"x")
            return
        handler.send_response(206 if span else 200)
        handler.send_header("Content-Length", str(len(part)))
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Last-Modified", handler.date_time_string(path.stat().st_mtime))
        if self.has_tags:
            handler.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if span:
            handler.send_header("Content-Range", f"bytes {span[1]}-{span[2]}/{len(data)}")
        handler.end_headers()
        if body:
            handler.wfile.write(part[: len(part) // 2] if fault == "cut" else part)
            handler.wfile.flush()
