"""Generates generated/ from protos/, or says where the two differ."""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "generated"


def generate(target: Path) -> None:
    """Writes into `target` everything that belongs into generated/."""
    protos = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    # The gRPC plugins write a module for every file they are given, with or
    # without a service in it.
    services = [path for path in protos if path.endswith("_service.proto")]
    _protoc([f"--python_out={target}", f"--pyi_out={target}"], protos)
    # The virtual environment's bin need not be on the PATH.
    plugin = Path(sys.executable).with_name("protoc-gen-mypy_grpc")
    _protoc(
        [
            f"--plugin=protoc-gen-mypy_grpc={plugin}",
            f"--grpc_python_out={target}",
            f"--mypy_grpc_out=quiet,only_async:{target}",
        ],
        services,
    )
    (target / "infrascout" / "py.typed").touch()


def differences(fresh: Path, existing: Path) -> list[str]:
    """Says, a line a file, how `existing` differs from `fresh`."""
    wanted, found = _files(fresh), _files(existing)
    lines = [f"missing: {path}" for path in wanted - found]
    lines += [f"stale: {path}" for path in found - wanted]
    lines += [
        f"differs: {path}"
        for path in wanted & found
        if not filecmp.cmp(fresh / path, existing / path, shallow=False)
    ]
    return sorted(lines)


def check() -> list[str]:
    """Says, a line a file, how generated/ differs from what protos/ give."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return differences(Path(folder), GENERATED)


def write() -> None:
    """Makes generated/ what protos/ give, and removes the rest."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        for path in _files(GENERATED) - _files(fresh):
            (GENERATED / path).unlink()
        shutil.copytree(fresh, GENERATED, dirs_exist_ok=True)


def main() -> int:
    """Checks, or with --write generates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="generate in place")
    if parser.parse_args().write:
        write()
        return 0
    lines = check()
    if lines:
        print(*lines, "generated/ is not what protos/ give: run make proto", sep="\n")
    return 1 if lines else 0


def _protoc(outputs: list[str], protos: list[str]) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *protos]
    subprocess.run(command, check=True)


def _files(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    sys.exit(main())
