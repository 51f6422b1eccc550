"""Who may call what: a table made from the descriptors, tried with every role and every proof."""

import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from callers import (
    HUMAN,
    METHODS,
    SERVICE,
    bearer,
    calling,
    code_of,
    declared_role,
    make_token,
    make_tokens,
    revoke,
)
from harness import FrozenClock, serving
from infrascout.sessions.v1 import access_pb2
from infrascout_sessions.interceptors.access import (
    OPEN_SERVICES,
    UndeclaredRoleError,
    declared_roles,
    role_of,
)
from infrascout_sessions.models import HUMANS_ONLY, Role
from infrascout_sessions.server import SERVICES
from infrascout_sessions.tokens import PREFIX

DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
KINDS = {"human": HUMAN, "service": SERVICE}


def test_every_rpc_declares_a_role() -> None:
    assert {method.containing_service.full_name for method in METHODS} == set(SERVICES)
    assert set(map(declared_role, METHODS)) == set(Role)


def _service(options: bytes) -> Any:
    """A service of our package with one RPC, whose options are these bytes."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"new_{secrets.token_hex(4)}.proto",
        package="infrascout.sessions.v1",
        syntax="proto3",
    )
    file.message_type.add(name=f"Message{secrets.token_hex(4)}")
    service = file.service.add(name=f"NewService{secrets.token_hex(4)}")
    kind = f".infrascout.sessions.v1.{file.message_type[0].name}"
    method = service.method.add(name="NewRpc", input_type=kind, output_type=kind)
    method.options.MergeFromString(options)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"infrascout.sessions.v1.{service.name}")


def test_an_rpc_without_a_declaration_is_not_served() -> None:
    unspecified, unknown = descriptor_pb2.MethodOptions(), descriptor_pb2.MethodOptions()
    unspecified.Extensions[access_pb2.role] = access_pb2.ROLE_UNSPECIFIED  # type: ignore[index]
    unknown.MergeFromString(b"\x98\xb8\x18\x63")  # the option, with the value 99
    for options in (b"", unspecified.SerializeToString(), unknown.SerializeToString()):
        service = _service(options)
        with pytest.raises(UndeclaredRoleError, match=f"{service.name}/NewRpc"):
            declared_roles([service])


def test_only_health_and_reflection_are_open() -> None:
    assert len(OPEN_SERVICES) == 3
    assert role_of("/grpc.health.v1.Health/Check", {}) is None
    for path in ("/infrascout.sessions.v1.New/Rpc", "/other.Service/Rpc"):
        with pytest.raises(UndeclaredRoleError):
            role_of(path, {})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_each_role_opens_what_declares_it_and_nothing_else(
    database_url: str, method: Any
) -> None:
    role = declared_role(method)
    callers = [
        (f"{kind}-{held}", KINDS[kind], [held])
        for kind in KINDS
        for held in Role
        if kind == "human" or held not in HUMANS_ONLY
    ]
    # All that can be had but the role itself.
    callers.append(("human-other", HUMAN, [held for held in Role if held is not role]))
    tokens = await make_tokens(database_url, callers)
    async with serving(database_url, require_identity=True) as client:
        for name, kind, held in callers:
            # No request is valid: whoever is let in is told so, and nobody else is.
            code = await code_of(client, method, b"\xff", bearer(tokens[name]))
            allowed = role in held and (kind is HUMAN or role not in HUMANS_ONLY)
            expected = (
                grpc.StatusCode.INVALID_ARGUMENT if allowed else grpc.StatusCode.PERMISSION_DENIED
            )
            assert code is expected, (name, code)


async def _proofs(database_url: str, clock: FrozenClock, tmp_path: Path) -> dict[str, Any]:
    """Proofs that do not hold, as metadata, by what is wrong with them."""
    human = (HUMAN, *Role)
    good = await make_token(database_url, "good", *human)
    expired = await make_token(database_url, "expired", *human, expire_time=clock() - 1)
    revoked = await make_token(database_url, "revoked", *human)
    await revoke(database_url, "revoked")
    foreign = await make_token(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}", "good", *human)
    return {
        "none": (),
        "expired": bearer(expired),
        "revoked": bearer(revoked),
        "foreign": bearer(foreign),
        "malformed": bearer(good[:-1]),
        "longer": bearer(f"{good}A"),
        "of another case": bearer(good.swapcase()),
        "empty": bearer(""),
        "only the scheme": (("authorization", "Bearer"),),
        "another scheme": (("authorization", f"Basic {good}"),),
        "without a scheme": (("authorization", good),),
        "two words": bearer(f"{good} {good}"),
        "doubled": bearer(good) * 2,
        "doubled, one bad": bearer(good) + bearer(foreign),
        "not ours": bearer("ey.not.ours"),
        "made up": bearer(PREFIX + secrets.token_urlsafe(32)),
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_no_bad_proof_opens_anything(
    database_url: str, clock: FrozenClock, tmp_path: Path, method: Any
) -> None:
    proofs = await _proofs(database_url, clock, tmp_path)
    async with serving(
        database_url, clock=clock, require_identity=True, maximum_failed_proofs=1000
    ) as client:
        for name, metadata in proofs.items():
            # A connection each: one that fails too often is told to wait.
            async with calling(client.address) as caller:
                code = await code_of(caller, method, b"\xff", metadata)
                assert code is grpc.StatusCode.UNAUTHENTICATED, (name, code)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_without_configuration_nobody_is_everything_but_a_reviewer(
    database_url: str, clock: FrozenClock, tmp_path: Path, method: Any
) -> None:
    proofs = await _proofs(database_url, clock, tmp_path)
    async with serving(database_url, clock=clock, maximum_failed_proofs=1000) as client:
        for name, metadata in proofs.items():
            async with calling(client.address) as caller:
                code = await code_of(caller, method, b"\xff", metadata)
            if name != "none":
                assert code is grpc.StatusCode.UNAUTHENTICATED, (name, code)
            elif declared_role(method) is Role.REVIEWER:
                assert code is grpc.StatusCode.PERMISSION_DENIED
            else:
                assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_identity_comes_before_the_request(database_url: str) -> None:
    """Who may not call learns nothing of what was wrong with the request."""
    token = await make_token(database_url, "viewer", HUMAN, Role.VIEWER)
    async with serving(database_url, require_identity=True) as client:
        for method in METHODS:
            async with calling(client.address) as caller:
                for data in (b"", b"\xff", b"\x0a\x03abc"):
                    assert await code_of(caller, method, data) in DENIED
                    if declared_role(method) is not Role.VIEWER:
                        assert await code_of(caller, method, data, bearer(token)) in DENIED
