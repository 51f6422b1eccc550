"""A disk of its own for a server, small, in a mount namespace."""

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from harness import ServiceProcess, service_process
from streams import SERVICE

_BALLAST: Final = 100_000_000
_NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--mount", "--")


@cache
def _can_mount() -> bool:
    mount = (*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    try:
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mount = pytest.mark.skipif(not _can_mount(), reason="no user and mount namespaces here")


@asynccontextmanager
async def small_disk(
    tmp_path: Path, free_bytes: int
) -> AsyncIterator[tuple[ServiceProcess, Callable[[], None]]]:
    """A server over SQLite on a disk with so much room, and what makes more room there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = " && ".join(
        (
            f'mount -t tmpfs -o size={free_bytes + _BALLAST} tmpfs "$0"',
            f'head -c {_BALLAST} /dev/zero >"$0/ballast"',
            'exec "$@"',
        )
    )
    async with service_process(
        f"sqlite+aiosqlite:///{disk / 'sessions.db'}",
        tmp_path / "log",
        command=(*_NAMESPACE, "sh", "-c", script, str(disk), *SERVICE),
    ) as service:
        ballast = Path(f"/proc/{service.process.pid}/root{disk}/ballast")
        yield service, ballast.unlink
