"""From what comes with a call to who makes it."""

from collections.abc import Iterable
from typing import Any, Final, NoReturn, Protocol

from infrascout_sessions.errors import ProofMissingOrInvalid
from infrascout_sessions.identity import InvalidProofError
from infrascout_sessions.interceptors.bounds import FailedProofs
from infrascout_sessions.interceptors.certificates import Certificates
from infrascout_sessions.models import LOCAL, Principal
from infrascout_sessions.tokens import PREFIX, digest_of

_SCHEME: Final = "bearer "


class Bearers(Protocol):
    """Whose a bearer proof of some kind is. Each method raises `InvalidProofError`."""

    def recall(self, digest: bytes) -> Principal | None:
        """The caller, if it is remembered."""
        ...

    def was_known(self, digest: bytes) -> bool:
        """Whether the proof was good when last looked at."""
        ...

    async def find(self, secret: str, digest: bytes) -> Principal:
        """The caller, by looking at the proof."""
        ...


class Proofs:
    """Looks at the proofs of callers: a bearer token or JWT, else the connection's certificate.

    `tokens` and `jwts` say whose they are, and `certificates` and `jwts` are None where such proofs
    are not taken. With `takes_local`, a caller that shows nothing is the service `local`.
    """

    def __init__(
        self,
        tokens: Bearers,
        jwts: Bearers | None,
        certificates: Certificates | None,
        failed: FailedProofs,
        takes_local: bool,
    ) -> None:
        self._tokens = tokens
        self._jwts = jwts
        self._certificates = certificates
        self._failed = failed
        self._takes_local = takes_local
        # What is looked at just now.
        self._looking: set[bytes] = set()

    async def principal(self, context: Any) -> Principal:
        """Who makes the call.

        Raises `ProofMissingOrInvalid`, `QuotaExceeded`, `DatabaseUnavailable`.
        """
        try:
            secret = _bearer(context.invocation_metadata())
            if secret is None:
                return self._without_bearer(context)
            bearers = self._bearers_of(secret)
            digest = digest_of(secret)
            principal = bearers.recall(digest)
        except InvalidProofError as error:
            await self._failed.count(context.peer())
            _refuse(error)
        if principal is not None:
            return principal
        peer = context.peer()
        # One that was good a moment ago is looked at without ado, however others fail. And a good
        # caller's first calls may be many at once: one look is one failure, until it has failed.
        if bearers.was_known(digest) or digest in self._looking:
            try:
                return await bearers.find(secret, digest)
            except InvalidProofError as error:
                await self._failed.count(peer)
                _refuse(error)

        async def find() -> Principal:
            self._looking.add(digest)
            try:
                return await bearers.find(secret, digest)
            finally:
                self._looking.discard(digest)

        try:
            return await self._failed.look(peer, digest, find)
        except InvalidProofError as error:
            _refuse(error)

    def digest(self, context: Any) -> bytes | None:
        """That of the bearer proof with a call that has been let in; None if it has none."""
        secret = _bearer(context.invocation_metadata())
        return None if secret is None else digest_of(secret)

    def recall(self, context: Any) -> Principal | None:
        """Who makes a call that has been let in, as `principal` would say now, if remembered.

        Raises `ProofMissingOrInvalid`.
        """
        try:
            secret = _bearer(context.invocation_metadata())
            if secret is None:
                return self._without_bearer(context)
            return self._bearers_of(secret).recall(digest_of(secret))
        except InvalidProofError as error:
            _refuse(error)

    async def again(self, context: Any) -> Principal:
        """Who makes a call that has been let in, as `principal` would say now.

        Proofs that end while they are in use are no attack, and not counted. Raises
        `ProofMissingOrInvalid`, `DatabaseUnavailable`.
        """
        principal = self.recall(context)
        if principal is not None:
            return principal
        try:
            secret = _bearer(context.invocation_metadata()) or ""
            return await self._bearers_of(secret).find(secret, digest_of(secret))
        except InvalidProofError as error:
            _refuse(error)

    def _bearers_of(self, secret: str) -> Bearers:
        bearers = self._tokens if secret.startswith(PREFIX) else self._jwts
        if bearers is None:
            raise InvalidProofError("no token of this service")
        return bearers

    def _without_bearer(self, context: Any) -> Principal:
        if self._certificates is not None:
            principal = self._certificates.principal(context.auth_context())
            if principal is not None:
                return principal
        if self._takes_local:
            return LOCAL
        raise InvalidProofError("no proof")


def _refuse(error: InvalidProofError) -> NoReturn:
    raise ProofMissingOrInvalid from error


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The bearer proof among the metadata, None if there is none.

    Raises `InvalidProofError` for anything but a single one.
    """
    found: str | bytes | None = None
    for key, value in metadata:
        if key == "authorization":
            if found is not None:
                raise InvalidProofError("more than one authorization")
            found = value
    if found is None:
        return None
    if not isinstance(found, str) or found[:7].lower() != _SCHEME:
        raise InvalidProofError("the authorization is no bearer proof")
    secret = found[7:]
    if not secret or " " in secret or not secret.isascii():
        raise InvalidProofError("the authorization is malformed")
    return secret
