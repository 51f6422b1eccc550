"""Who may call what: the role that each RPC declares in the .proto (`access.proto`)."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor

from infrascout.sessions.v1 import access_pb2
from infrascout_sessions.errors import Refusal, ReviewerNotHuman, RoleMissing
from infrascout_sessions.models import HUMANS_ONLY, ActorKind, Principal, Role

OPEN_SERVICES: Final = frozenset(
    {
        # A load balancer has no identity.
        "grpc.health.v1.Health",
        # The contract is public, and holds nothing of anybody.
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
"""What is answered to whoever asks."""

_ROLES: Final[Mapping[int, Role]] = {
    access_pb2.Role.Value(f"ROLE_{role.name}"): role for role in Role
}


class UndeclaredRoleError(Exception):
    """An RPC does not declare who may call it: nobody may, and the server does not start."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} declares no role: give it `option (infrascout.sessions.v1.role)` in its .proto"
        )


def declared_roles(services: Iterable[ServiceDescriptor]) -> Mapping[str, Role]:
    """The role that each RPC of the services asks for, by the RPC's path.

    Raises `UndeclaredRoleError`.
    """
    roles = {}
    for service in services:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            options: Any = method.GetOptions()
            role = _ROLES.get(options.Extensions[access_pb2.role])
            if role is None:
                raise UndeclaredRoleError(path)
            roles[path] = role
    return roles


def role_of(path: str, roles: Mapping[str, Role]) -> Role | None:
    """The role that a call of this path takes, or None where none is asked for.

    Raises `UndeclaredRoleError`.
    """
    role = roles.get(path)
    if role is None and path.split("/")[1] not in OPEN_SERVICES:
        raise UndeclaredRoleError(path)
    return role


def refusal(principal: Principal, role: Role) -> Refusal | None:
    """Why the caller may not call an RPC that asks for the role; None if it may."""
    if role in HUMANS_ONLY and principal.kind is not ActorKind.HUMAN:
        return ReviewerNotHuman(principal.subject)
    if role not in principal.roles:
        return RoleMissing(principal.subject, f"ROLE_{role.name}")
    return None
