"""Builds and runs the load generator of bench/load."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "load"
BINARY = SOURCE / "load"
LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Load:
    """What the generator measured in its window; errors and all_calls are of the whole run."""

    calls: int
    all_calls: int
    errors: dict[str, int]
    first_errors: list[str]
    seconds: float
    per_second: float
    latency_us: dict[str, float]
    first_message_us: dict[str, float] | None
    messages: int
    bytes: int
    cpu_per_second: float

    @property
    def bytes_per_call(self) -> float:
        return self.bytes / self.calls if self.calls else 0.0


def build() -> None:
    """Build the generator unless it is newer than its source."""
    source = [*SOURCE.glob("*.go"), *SOURCE.glob("go.*")]
    newest = max(path.stat().st_mtime for path in source)
    if BINARY.exists() and BINARY.stat().st_mtime >= newest:
        return
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/go/bin"])
    go = shutil.which("go", path=path)
    if go is None:
        raise SystemExit("make bench needs Go 1.24 or later to build its load generator")
    command = [go, "build", "-o", str(BINARY), "."]
    if subprocess.run(command, cwd=SOURCE, check=False).returncode:
        raise SystemExit("the load generator did not build; make bench needs Go 1.24 or later")


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for request in requests:
            file.write(LENGTH.pack(len(request)) + request)


def read_replies(path: Path) -> list[bytes]:
    data, replies, offset = path.read_bytes(), [], 0
    while offset < len(data):
        (size,) = LENGTH.unpack_from(data, offset)
        offset += LENGTH.size + size
        replies.append(data[offset - size : offset])
    return replies


def measure(
    address: str,
    method: str,
    requests: Path,
    *,
    callers: int,
    seconds: float,
    warm_up_seconds: float,
    once: bool,
    mode: str = "unary",
    window: int = 16,
) -> Load:
    return _run(
        [
            *("-target", address, "-method", method, "-requests", str(requests)),
            *("-mode", mode, "-callers", str(callers), f"-once={str(once).lower()}"),
            *("-window", str(window)),
            *("-duration", f"{seconds}s", "-warmup", f"{warm_up_seconds}s"),
        ],
        limit_seconds=seconds + warm_up_seconds + 60,
    )


def send(
    address: str,
    method: str,
    requests: Iterable[bytes],
    folder: Path,
    *,
    callers: int = 64,
    mode: str = "unary",
) -> list[bytes]:
    """Send each request once; the replies (of unary calls) come in any order."""
    callers = callers if mode == "unary" else 1
    sent, kept = folder / "preparation.requests", folder / "preparation.replies"
    write_requests(sent, requests)
    load = _run(
        [
            *("-target", address, "-method", method, "-requests", str(sent), "-once"),
            *("-duration", "0s", "-patience", "120s", "-callers", str(callers)),
            *("-mode", mode, "-replies", str(kept)),
        ],
        limit_seconds=180,
    )
    if load.errors:
        raise SystemExit(f"preparing with {method} failed: {load.errors} {load.first_errors}")
    return read_replies(kept)


def stream_once(address: str, method: str, request: bytes, folder: Path) -> Load:
    """Drain one stream."""
    file = folder / "stream.request"
    write_requests(file, [request])
    return _run(
        [
            *("-target", address, "-method", method, "-requests", str(file), "-mode", "stream"),
            *("-once", "-duration", "0s", "-patience", "300s"),
        ],
        limit_seconds=400,
    )


def _run(arguments: list[str], limit_seconds: float) -> Load:
    done = subprocess.run(
        [str(BINARY), *arguments], stdout=subprocess.PIPE, timeout=limit_seconds, check=False
    )
    if done.returncode:
        raise SystemExit(f"the load generator failed: {' '.join(arguments)}")
    report = json.loads(done.stdout)
    report.setdefault("first_message_us", None)
    return Load(**{name: report[name] for name in Load.__dataclass_fields__})
