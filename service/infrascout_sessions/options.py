"""The options of `serve` that say who may call, and how much."""

from typing import Annotated

import typer

from infrascout_sessions.config import Settings
from infrascout_sessions.models import Independence

NOTHING: list[str] = []
DEFAULT_ALGORITHMS = list(Settings.oidc_algorithms)

RequireIdentity = Annotated[
    bool,
    typer.Option(
        "--require-identity",
        envvar="INFRASCOUT_REQUIRE_IDENTITY",
        help="Refuse callers without a proof on a loopback address, too.",
    ),
]
Plaintext = Annotated[
    bool,
    typer.Option(
        "--plaintext",
        envvar="INFRASCOUT_PLAINTEXT",
        help="Listen without TLS on an address that others reach, behind a mesh that encrypts. "
        "Gives up that nobody on the way reads or changes what is sent, tokens included.",
    ),
]
TLSCert = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_TLS_CERT",
        help="Serve TLS with the certificate chain in this PEM file; taken anew when it changes.",
    ),
]
TLSKey = Annotated[
    str,
    typer.Option(envvar="INFRASCOUT_TLS_KEY", help="The PEM file of the certificate's key."),
]
TLSClientCA = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_TLS_CLIENT_CA",
        help="Take only clients with a certificate of the CAs in this PEM file.",
    ),
]
MTLSRoles = Annotated[
    list[str],
    typer.Option(
        "--mtls-role",
        envvar="INFRASCOUT_MTLS_ROLE",
        metavar="SUBJECT=ROLE,ROLE",
        help="The roles of a client certificate by its SPIFFE id or else its common name; "
        "`*` for all that are not named.",
    ),
]
ReviewIndependence = Annotated[
    Independence,
    typer.Option(
        envvar="INFRASCOUT_REVIEW_INDEPENDENCE",
        help="Whether a reviewer must have had no part in the session; reviews say which.",
    ),
]
AccessLogFile = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_ACCESS_LOG",
        metavar="FILE",
        help="Write who did what to this file, which may be rotated, or to stderr if `-`; "
        "the log says it if empty.",
    ),
]
OIDCIssuer = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_OIDC_ISSUER",
        help="Take JWTs of this issuer, an https URL; needs the extra `oidc`.",
    ),
]
OIDCAudience = Annotated[
    str,
    typer.Option(envvar="INFRASCOUT_OIDC_AUDIENCE", help="The audience that JWTs must be for."),
]
OIDCJWKSUrl = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_OIDC_JWKS_URL",
        help="Where the issuer's keys are; found out from the issuer if empty.",
    ),
]
OIDCAlgorithms = Annotated[
    list[str],
    typer.Option(
        "--oidc-algorithm",
        envvar="INFRASCOUT_OIDC_ALGORITHM",
        help="An algorithm that JWTs may be signed with.",
    ),
]
OIDCSubjectClaim = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_OIDC_SUBJECT_CLAIM", help="The claim that is the caller's name."
    ),
]
OIDCRolesClaim = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_OIDC_ROLES_CLAIM",
        help="The claim that holds roles or groups; dots lead into it: realm_access.roles.",
    ),
]
OIDCRoles = Annotated[
    list[str],
    typer.Option(
        "--oidc-role",
        envvar="INFRASCOUT_OIDC_ROLE",
        metavar="VALUE=ROLE,ROLE",
        help="The roles that a value of that claim gives.",
    ),
]
OIDCHuman = Annotated[
    list[str],
    typer.Option(
        envvar="INFRASCOUT_OIDC_HUMAN",
        metavar="CLAIM[=VALUE]",
        help="What a JWT must hold to be a human's; all of them if several. "
        "Without any, every JWT is a service's.",
    ),
]
MaximumCalls = Annotated[
    int,
    typer.Option(
        envvar="INFRASCOUT_MAXIMUM_CALLS", min=1, help="How many calls may be under way at once."
    ),
]
MaximumCallsOfCaller = Annotated[
    int,
    typer.Option(
        envvar="INFRASCOUT_MAXIMUM_CALLS_OF_CALLER",
        min=1,
        help="How many of them may be one caller's.",
    ),
]
MaximumStreamsOfCaller = Annotated[
    int,
    typer.Option(
        envvar="INFRASCOUT_MAXIMUM_STREAMS_OF_CALLER",
        min=1,
        help="How many of those may be streams.",
    ),
]
MaximumFailedProofs = Annotated[
    float,
    typer.Option(
        envvar="INFRASCOUT_MAXIMUM_FAILED_PROOFS",
        min=1,
        help="How many proofs from one address may fail a second; further ones are refused late.",
    ),
]
MaximumMetadataBytes = Annotated[
    int,
    typer.Option(
        envvar="INFRASCOUT_MAXIMUM_METADATA_BYTES",
        min=1024,
        help="How large the metadata of a call may be.",
    ),
]
MaximumConnectionAge = Annotated[
    float,
    typer.Option(
        envvar="INFRASCOUT_MAXIMUM_CONNECTION_AGE",
        min=0,
        help="Close connections that are so many seconds old, five minutes after they were told; "
        "0 for never.",
    ),
]
Keepalive = Annotated[
    float,
    typer.Option(
        envvar="INFRASCOUT_KEEPALIVE",
        min=1,
        help="Ask after a silent connection's other end every so many seconds.",
    ),
]
