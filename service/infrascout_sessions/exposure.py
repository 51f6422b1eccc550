"""What a server may be open to: who is let in without a proof, and which settings are refused."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from infrascout_sessions.config import Settings
from infrascout_sessions.models import HUMANS_ONLY, Role


class ExposureError(Exception):
    """Settings that would leave the server open, or shut for good; the text says what to do."""


def is_loopback(address: str) -> bool:
    """Whether only this machine's programs can reach the address, HOST:PORT or unix:PATH."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def takes_local(settings: Settings) -> bool:
    """Whether a caller without a proof is the service `local`."""
    return is_loopback(settings.listen) and not (
        settings.require_identity or settings.oidc_issuer or settings.tls_client_ca
    )


def roles_by_name(
    entries: Iterable[str], option: str, *, humans: bool
) -> Mapping[str, frozenset[Role]]:
    """Settings of the form NAME=ROLE,ROLE as a table.

    Raises `ExposureError`, also for a role that only humans have unless `humans` may be named.
    """
    table: dict[str, frozenset[Role]] = {}
    for entry in entries:
        # SPIFFE ids and groups may hold a `=`; roles do not.
        name, _, names = entry.rpartition("=")
        try:
            roles = frozenset(Role(role.strip()) for role in names.split(","))
        except ValueError:
            roles = frozenset()
        if not name or not roles:
            known = ", ".join(Role)
            raise ExposureError(f"{option} {entry!r}: write NAME=ROLE,ROLE with roles of {known}")
        if not humans and roles & HUMANS_ONLY:
            raise ExposureError(
                f"{option} {entry!r}: a certificate is a service's and cannot review"
            )
        table[name] = table.get(name, frozenset()) | roles
    return table


def check(settings: Settings) -> None:
    """Raise `ExposureError` for settings that must not be served with."""
    host, _, port = settings.listen.rpartition(":")
    # gRPC takes a port over 65535, and listens on another one.
    if not (port if host == "unix" else host and port.isdecimal() and int(port) < 65_536):
        raise ExposureError(
            f"cannot listen on {settings.listen!r}: write HOST:PORT, with a port up to 65535, or "
            "unix:PATH"
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ExposureError("TLS takes both --tls-cert and --tls-key")
    if settings.tls_client_ca and not settings.tls_cert:
        raise ExposureError("--tls-client-ca takes --tls-cert and --tls-key, too")
    if settings.plaintext and settings.tls_cert:
        raise ExposureError("--plaintext and --tls-cert exclude each other: leave one out")
    if settings.mtls_roles and not settings.tls_client_ca:
        raise ExposureError("--mtls-role takes --tls-client-ca, too")
    roles_by_name(settings.mtls_roles, "--mtls-role", humans=False)
    for option, value in (
        ("--oidc-audience", settings.oidc_audience),
        ("--oidc-jwks-url", settings.oidc_jwks_url),
        ("--oidc-role", settings.oidc_roles),
        ("--oidc-human", settings.oidc_human),
    ):
        if value and not settings.oidc_issuer:
            raise ExposureError(f"{option} takes --oidc-issuer, too")
    if not (is_loopback(settings.listen) or settings.tls_cert or settings.plaintext):
        raise ExposureError(
            f"{settings.listen} can be reached from other machines: give --tls-cert and --tls-key, "
            "and callers will need a proof of who they are (`infrascout-sessions token create`, "
            "--oidc-issuer or --tls-client-ca); or --plaintext behind a mesh or proxy that "
            "encrypts, which gives up that nobody on the way reads or changes what is sent, "
            "tokens included; or listen on a loopback address such as 127.0.0.1:50051"
        )
