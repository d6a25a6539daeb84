"""Become Mosquitto, with a reader behind its log that writes down whom it refused.

    python broker_watch.py FOLDER MOSQUITTO FILTER...        (FILTER: what devices may subscribe to, %u for the name)

Mosquitto tells of refused messages in its debug log only, which has five lines per message: too much to keep. So the
log goes through a pipe; what it refused is appended to FOLDER/refused.jsonl, for the controller to note in the audit
log, and of the rest only what is no debugging goes on to stderr.

A script of the standard library alone: it runs beside every broker. The broker is the process that was started (its
signals and status are its own); the reader is its child, and ends when the broker closed the pipe.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

REFUSED = "refused.jsonl"
_MOST_BYTES = 4 << 20  # then the older half of the story is dropped: an attacker must not fill the disk
_DENIED = re.compile(rb"Denied PUBLISH from (\S+) \(.*?, '(.*)', \.\.\.")
_SUBSCRIBED = re.compile(rb"(\S+) [012] (.+)")
_TAKEN_OVER = re.compile(rb"Client (\S+) already connected")
_NO_TLS = re.compile(rb"OpenSSL Error\[0\]: .*:(certificate verify failed|peer did not return a certificate)")
_DEBUG = re.compile(
    rb"Received |Sending |New (?:connection|client)|No will|Will message|\t|Client \S+ (?:disconnected|closed its)"
)


def judge(line: bytes, allowed: tuple[str, ...]) -> tuple[dict[str, str] | None, bool]:
    """What a line of the log (without its time) says of a refusal, and whether the line is worth showing."""
    if line.startswith(b"Denied PUBLISH"):
        found = _DENIED.match(line)
        return (_entry("publish", found) if found else None), False
    if _DEBUG.match(line):
        return None, False
    if found := _NO_TLS.match(line):
        return {"what": "connect", "client": "unknown", "topic": found[1].decode()}, True
    if found := _TAKEN_OVER.match(line):
        return _entry("takeover", found), True
    if found := _SUBSCRIBED.fullmatch(line):
        entry = _entry("subscribe", found)
        mine = {pattern.replace("%u", entry["client"]) for pattern in allowed}
        service = entry["client"].startswith("svc-")
        return (None if service or entry["topic"] in mine else entry), False
    return None, True


def _entry(what: str, found: re.Match[bytes]) -> dict[str, str]:
    parts = [part.decode("utf-8", "replace")[:256] for part in found.groups()]
    return {"what": what, "client": parts[0], "topic": parts[1] if len(parts) > 1 else ""}


def read(log: BinaryIO, file: Path, allowed: tuple[str, ...], shown: BinaryIO) -> None:
    """Until the broker closes its log."""
    for raw in log:
        entry, show = judge(raw.rstrip(b"\n").partition(b": ")[2], allowed)
        if entry is not None:
            if file.exists() and file.stat().st_size > _MOST_BYTES:
                file.replace(file.with_suffix(".old"))
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"at": time.time(), **entry}) + "\n")
        if show:
            shown.write(raw)
            shown.flush()


def main() -> None:
    """See the top."""
    folder, program, *allowed = sys.argv[1:]
    out, into = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(into)
        with os.fdopen(out, "rb") as log:
            read(log, Path(folder) / REFUSED, tuple(allowed), sys.stderr.buffer)
        return
    os.close(out)
    os.dup2(into, 2)
    os.execv(program, [program, "-c", str(Path(folder) / "mosquitto.conf")])  # noqa: S606 - given by `broker`


if __name__ == "__main__":
    main()
