"""Program that filters the stderr of one process of a multi-host job.

When a peer is gone, jax's coordination service ends the process from C++ with a page of internals
and SIGABRT, which Python cannot catch. This program outlives the process by a moment and writes
one line instead of that page; everything else passes through. The process sends the line
beforehand as a control line: CONTROL, then the text, in which {who} becomes the process that is
gone and {status} the service's message. An empty text means that the process has reported its end
itself, and nothing may follow.
"""

import os
import re
import select
import signal
import sys
import time

CONTROL = b"\x1eclip_jax:"
HOLD_SECONDS = 2.0  # how long a line of the service is held, in case the process aborts next
PARTIAL_SECONDS = 0.2  # how long an incomplete line is held
LOGGED = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\] ")
SERVICE = (
    b"coordination_service.cc",
    b"coordination_service_agent.cc",
    b"preemption_sync_manager.cc",
    b"add_port.cc",
)
FATAL = b"JAX distributed service detected fatal errors"
STACK = b"*** Check failure stack trace"
SILENT = re.compile(rb"stopped sending heartbeats\):\s*((?:\S*\d+\s+)+)")
UNREACHABLE = (b"Failed to send RPC to coordination service", b"CoordinationService/Heartbeat")
STATUS = re.compile(rb"absl::Status: (.*?)(?:\. |[.:]?$|\[)", re.MULTILINE)


def explain(text: bytes, template: bytes) -> bytes:
    """Returns the line that replaces what the service wrote before it ended the process."""
    silent = SILENT.search(text)
    numbers = re.findall(rb"(\d+)\s", silent[1]) if silent else []
    if numbers:
        who = (b"process " if len(numbers) == 1 else b"processes ") + b", ".join(numbers)
    elif any(sign in text for sign in UNREACHABLE):
        who = b"process 0"  # it runs the service
    else:
        who = b"another process"
    status = STATUS.search(text)
    said = status[1].strip() if status else b"no reason given"
    return template.replace(b"{who}", who).replace(b"{status}", said)


class Filter:
    """State of the filter; `ended` is True once the process is known to be aborting."""

    def __init__(self) -> None:
        self.template = b"error: {who} of this job is gone ({status})"
        self.ended = False
        self._held: list[bytes] = []
        self._deadline = 0.0
        self._fatal = False

    def line(self, line: bytes, now: float) -> bytes:
        """Consumes one line; returns the bytes to write now."""
        if line.startswith(CONTROL):
            self.template = line[len(CONTROL) :].strip()
            return b""
        if not self.template:
            return b""
        if FATAL in line:
            self._fatal = True
        if self._fatal:
            if STACK in line:
                return self.end()
            self._held.append(line)
            self._deadline = now + HOLD_SECONDS
            return b""
        logged = LOGGED.match(line)
        if logged and logged[1] in SERVICE:
            if not self._held:
                self._deadline = now + HOLD_SECONDS
            self._held.append(line)
            return b""
        if self._held and not logged:
            self._held.append(line)  # more of the message
            return b""
        return line

    def wait(self, now: float) -> float | None:
        """Returns the seconds until `overdue` has something to do; None if nothing is held."""
        return max(0.0, self._deadline - now) if self._held else None

    def overdue(self, now: float) -> bytes:
        """Returns the lines that have been held long enough."""
        if not self._held or now < self._deadline:
            return b""
        if self._fatal:
            return self.end()
        text, self._held = b"".join(self._held), []
        return text

    def end(self) -> bytes:
        """Returns the last bytes to write, once no more input can come."""
        self.ended = True
        text, self._held = b"".join(self._held), []
        if not self.template:
            return b""
        return explain(text, self.template) + b"\n" if self._fatal else text


def main() -> None:
    """Filters stdin to stderr until the process ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The whole process group gets these signals; only the filtered process may act on them.
        signal.signal(number, signal.SIG_IGN)
    state, rest = Filter(), b""
    while not state.ended:
        now = time.monotonic()
        timeout = min(
            (x for x in (state.wait(now), PARTIAL_SECONDS if rest else None) if x is not None),
            default=None,
        )
        ready, _, _ = select.select([0], [], [], timeout)
        now = time.monotonic()
        out = b""
        if ready:
            data = os.read(0, 1 << 16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not state.ended:
                    out += state.line(line + b"\n", now)
            if not data:
                out += state.end() + rest
                state.ended = True
        elif rest:
            out, rest = state.line(rest, now), b""
        sys.stderr.buffer.write(out + (b"" if state.ended else state.overdue(now)))
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    main()
