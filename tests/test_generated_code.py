import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FileDescriptor,
    MethodDescriptor,
)

import generated_code

PACKAGE = "infrascout.sessions.v1"
FOLDER = PACKAGE.replace(".", "/")


def _file(path: Path) -> FileDescriptor:
    importlib.import_module(f"{PACKAGE}.{path.stem}_pb2")
    return descriptor_pool.Default().FindFileByName(f"{FOLDER}/{path.name}")


FILES = [_file(path) for path in sorted((generated_code.PROTOS / FOLDER).glob("*.proto"))]
METHODS = [
    method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
]


def _enums(container: FileDescriptor | Descriptor) -> Iterator[EnumDescriptor]:
    yield from container.enum_types_by_name.values()
    messages = (
        container.message_types_by_name.values()
        if isinstance(container, FileDescriptor)
        else container.nested_types
    )
    for message in messages:
        yield from _enums(message)


ENUMS = [enum for file in FILES for enum in _enums(file)]


def test_generated_code_is_fresh() -> None:
    assert generated_code.check() == []


def test_a_difference_is_told(tmp_path: Path) -> None:
    fresh, existing = tmp_path / "fresh", tmp_path / "existing"
    for path, content in {
        fresh / "same_pb2.py": "1",
        existing / "same_pb2.py": "1",
        fresh / "edited_pb2.py": "1",
        existing / "edited_pb2.py": "2",
        fresh / "new_pb2.py": "1",
        existing / "removed_pb2.py": "1",
        existing / "__pycache__" / "same_pb2.pyc": "",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert generated_code.differences(fresh, existing) == [
        "differs: edited_pb2.py",
        "missing: new_pb2.py",
        "stale: removed_pb2.py",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file.name).stem)
def test_nothing_is_imported_from_outside(file: FileDescriptor) -> None:
    for dependency in file.dependencies:
        assert dependency.name.startswith(("google/protobuf/", f"{FOLDER}/"))


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_an_enum_begins_with_unspecified(enum: EnumDescriptor) -> None:
    assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_an_rpc_has_a_request_and_a_response_of_its_own(method: MethodDescriptor) -> None:
    assert method.input_type.full_name == f"{PACKAGE}.{method.name}Request"
    assert method.output_type.full_name == f"{PACKAGE}.{method.name}Response"


def test_no_two_rpcs_share_a_name() -> None:
    names = [method.name for method in METHODS]
    assert len(names) == len(set(names))
