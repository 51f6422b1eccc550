"""Starts, watches and stops the two servers that are compared."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parent.parent
# Ours runs elsewhere, and from a checkout that may not be installed.
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("service", "generated"))
START_SECONDS = 60
STOP_SECONDS = 30


@dataclass(frozen=True)
class Server:
    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """User and kernel time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """What it holds now."""
        return self._status("VmRSS:")

    def peak_bytes(self) -> int:
        """The most memory it ever held, or since `forget_peak`."""
        return self._status("VmHWM:")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


@contextmanager
def ours(folder: Path, database_url: str) -> Iterator[Server]:
    """The service as it is shipped: no setting but where it listens and stores."""
    address = f"127.0.0.1:{_free_port()}"
    command = [
        *(sys.executable, "-m", "infrascout_sessions", "serve", "--listen", address),
        *("--database-url", database_url),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("INFRASCOUT_")}
    environment["PYTHONPATH"] = SOURCES
    log = folder / f"ours-{address.rpartition(':')[2]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env=environment
        )
    with _stopped_afterwards(process):
        try:
            _wait_until_serving(process, address)
            yield Server(address, process.pid)
        except BaseException:
            print(f"The end of the service's log:\n{log.read_text()[-4000:]}", file=sys.stderr)
            raise
    log.unlink()


@contextmanager
def noop() -> Iterator[Server]:
    command = [sys.executable, "-m", "bench.noop", "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    with _stopped_afterwards(process):
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        if not port:
            raise SystemExit("bench.noop did not start")
        yield Server(f"127.0.0.1:{port}", process.pid)


@contextmanager
def _stopped_afterwards(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_serving(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                reply = health.Check(  # type: ignore[attr-defined]  # the stubs leave it out
                    health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True
                )
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.05)
    raise SystemExit(f"the service did not serve on {address}")
