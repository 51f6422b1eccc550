"""What is shipped: the wheel, the sdist, and how much they bring along."""

import asyncio
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from harness import (
    clean_environment,
    connected,
    record,
    running_session,
    service_process,
    submit,
)

ROOT = Path(__file__).resolve().parent.parent
NAME = f"infrascout_sessions-{version('infrascout-sessions')}"


def build(source: Path, target: Path, kind: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def committable(folder: Path) -> set[str]:
    """The files of a source root, without what Python leaves there."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    names = names_in(wheel)
    assert {name.split("/")[0] for name in names} == {
        "infrascout",
        "infrascout_sessions",
        f"{NAME}.dist-info",
    }
    packages = {name for name in names if ".dist-info/" not in name}
    assert packages == committable(ROOT / "service") | committable(ROOT / "generated")
    assert {
        "infrascout/py.typed",
        "infrascout/sessions/v1/session_service_pb2.py",
        "infrascout/sessions/v1/session_service_pb2.pyi",
        "infrascout/sessions/v1/session_service_pb2_grpc.py",
        "infrascout_sessions/py.typed",
        "infrascout_sessions/storage/migrations/env.py",
        "infrascout_sessions/storage/migrations/script.py.mako",
        "infrascout_sessions/storage/migrations/versions/0001_sessions.py",
    } <= packages
    # A namespace that others can share: with this file, they could not.
    assert "infrascout/__init__.py" not in packages


def test_the_wheel_installs_the_program(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    assert entry_points.split() == [
        "[console_scripts]",
        *("infrascout-sessions", "=", "infrascout_sessions.cli:main"),
    ]
    assert "Requires-Python: >=3.11\n" in metadata
    for needed in requires("infrascout-sessions") or ():
        assert f"Requires-Dist: {needed}\n" in metadata


async def test_the_wheel_serves(wheel: Path, tmp_path: Path, database_url: str) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    # Before the editable install of this repository.
    path = {"PYTHONPATH": str(installed)}
    where = (
        "import infrascout_sessions.cli as cli, infrascout.sessions.v1.session_pb2 as messages;"
        "print(cli.__file__, messages.__file__, sep='\\n')"
    )
    shown = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", where),
        stdout=subprocess.PIPE,
        env=clean_environment(**path),
        cwd=tmp_path,
    )
    files, _ = await shown.communicate()
    assert len(files.splitlines()) == 2
    for file in files.decode().splitlines():
        assert Path(file).is_relative_to(installed)
    async with (
        service_process(
            database_url,
            tmp_path / "log",
            command=(sys.executable, "-m", "infrascout_sessions"),
            environment=path,
        ) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        await record(client, session_id)
        assert (await submit(client, session_id)).execution_count == 1


def test_the_sdist_is_all_text_and_makes_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    assert sdist.name == f"{NAME}.tar.gz"
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None, f"{member.name} is no file"
            content.read().decode()  # raises for what is binary
            assert member.size < 500_000
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / NAME
    assert {path.name for path in folder.iterdir()} >= {
        "README.md",
        "generated",
        "protos",
        "pyproject.toml",
        "requirements",
        "service",
        "tests",
    }
    assert names_in(build(folder, tmp_path / "wheel", "wheel")) == names_in(wheel)


def locked(name: str) -> dict[str, str]:
    """The packages in a lock, with their versions."""
    text = (ROOT / "requirements" / name).read_text()
    pins = re.findall(r"^([a-z0-9_.-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE)
    # Each pin is followed by its hashes.
    assert len(re.findall(r"==\S+[^\n]*\\\n +--hash=sha256:", text)) == len(pins)
    return dict(pins)


def test_the_runtime_is_at_most_40_packages() -> None:
    runtime = locked("runtime.txt")
    assert 10 < len(runtime) <= 40


def test_what_the_program_needs_is_locked() -> None:
    runtime = locked("runtime.txt")
    development = locked("development.txt")
    needed = [
        re.split(r"[\[<>=!~; ]", one)[0]
        for one in requires("infrascout-sessions") or ()
        if "extra ==" not in one
    ]
    assert len(needed) > 10
    assert set(needed) <= runtime.keys()
    # Who develops runs what is shipped.
    assert runtime.items() <= development.items()


# Imports nothing but what a lock holds, and what is no package of a registry.
_RUNTIME_ALONE = """
import importlib.abc, importlib.metadata, re, sys
runtime = set(sys.argv.pop(1).split(","))
class Missing(importlib.abc.MetaPathFinder):
    others = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not any(re.sub("[-_.]+", "-", name).lower() in runtime for name in packages)
    }
    def find_spec(self, name, path=None, target=None):
        if name in self.others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from infrascout_sessions.cli import main; main()
"""


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("mcp",), "mcp"),
        (("serve", "--oidc-issuer", "https://issuer.example", "--oidc-audience", "a"), "oidc"),
        (("serve", "--database-url", "postgresql+asyncpg://u:secret@127.0.0.1:1/x"), "postgres"),
        (("migrate", "--database-url", "postgresql+asyncpg://u:secret@127.0.0.1:1/x"), "postgres"),
    ],
)
def test_what_takes_an_extra_says_which(
    tmp_path: Path, arguments: tuple[str, ...], extra: str
) -> None:
    own = {"infrascout-sessions", *locked("runtime.txt")}
    ended = subprocess.run(
        [sys.executable, "-c", _RUNTIME_ALONE, ",".join(own), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=tmp_path,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith("infrascout-sessions: ")
    # Of the clone: what a registry has under this name may be anybody's.
    assert f"pip install -e '.[{extra}]'" in line
