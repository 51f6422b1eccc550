"""Callers that prove who they are by the client certificate of their connection."""

from collections.abc import Iterable, Mapping
from typing import Final

from infrascout_sessions.identity import InvalidProofError
from infrascout_sessions.models import RESERVED_SUBJECTS, ActorKind, Principal, Proof, Role

EVERY_SUBJECT: Final = "*"
"""In the setting: the roles of those who are not named."""

_MAXIMUM_SUBJECT: Final = 255


class Certificates:
    """Whose a certificate is: always a service, by its SPIFFE id or else its common name."""

    def __init__(self, roles: Mapping[str, frozenset[Role]]) -> None:
        self._roles = roles
        self._others = roles.get(EVERY_SUBJECT, frozenset())

    def principal(self, properties: Mapping[str, Iterable[bytes]]) -> Principal | None:
        """The caller, of what gRPC has found in the certificate; None if there was none.

        gRPC has verified the certificate. Raises `InvalidProofError`.
        """
        names = [*properties.get("x509_common_name", ())]
        spiffe = [
            name
            for name in properties.get("x509_subject_alternative_name", ())
            if name.startswith(b"spiffe://")
        ]
        if not names and not spiffe:
            if "x509_pem_cert" in properties:
                raise InvalidProofError("the certificate has neither a SPIFFE id nor a common name")
            return None
        # As SPIFFE has it: a certificate with more than one id is none.
        found = spiffe or names
        if len(found) != 1:
            raise InvalidProofError("the certificate has more than one SPIFFE id or common name")
        subject = found[0].decode(errors="replace")
        if (
            not 0 < len(subject) <= _MAXIMUM_SUBJECT
            or not subject.isprintable()
            or subject in RESERVED_SUBJECTS
        ):
            raise InvalidProofError("the certificate's subject cannot be a caller's name")
        roles = self._roles.get(subject, self._others)
        return Principal(subject, ActorKind.SERVICE, roles, Proof.CERTIFICATE)
