"""Callers that prove who they are by a JWT of an OpenID Connect issuer (the extra `oidc`).

The issuer is asked for its keys and nothing else: not for each call, and not while one waits,
unless it shows a key that is not known yet.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from time import monotonic, time
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import structlog

from infrascout_sessions.config import Settings
from infrascout_sessions.exposure import ExposureError, roles_by_name
from infrascout_sessions.identity import InvalidProofError
from infrascout_sessions.models import (
    HUMANS_ONLY,
    RESERVED_SUBJECTS,
    ActorKind,
    Principal,
    Proof,
    Role,
)

try:
    import jwt
except ImportError:  # the extra is not installed; `verifying` says so
    jwt = None  # type: ignore[assignment]

_log = structlog.get_logger()

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Signatures that only the issuer can make; those with a shared secret are not among them."""

_LEEWAY_SECONDS: Final = 10
_REFRESH_INTERVAL_SECONDS: Final = 300.0
# An unknown key is asked for at once, this often, and then once in so many seconds.
_ASKS_AT_ONCE: Final = 5.0
_ASK_INTERVAL_SECONDS: Final = 10.0
_FETCH_TIMEOUT_SECONDS: Final = 5.0
_MAXIMUM_DOCUMENT_BYTES: Final = 1024 * 1024
_MAXIMUM_SUBJECT: Final = 255
# A signature costs more than the rest of a small call.
_REMEMBERED_SECONDS: Final = 60.0
_MAXIMUM_REMEMBERED: Final = 10_000


class _NoRedirects(HTTPRedirectHandler):
    """The keys are taken from where the settings say, and from nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = build_opener(_NoRedirects)


def _fetch(url: str) -> Any:
    """The JSON document at a URL; blocks. Raises `OSError`, `ValueError`."""
    _check_url(url)
    request = Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked
    with _opener.open(request, timeout=_FETCH_TIMEOUT_SECONDS) as response:
        content = response.read(_MAXIMUM_DOCUMENT_BYTES + 1)
    if len(content) > _MAXIMUM_DOCUMENT_BYTES:
        raise ValueError(f"{url} is larger than {_MAXIMUM_DOCUMENT_BYTES:,} bytes")
    return json.loads(content)


def _check_url(url: str) -> None:
    """Raise `ValueError` for a URL whose content others could change on the way."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        local = False
    if not host or parts.scheme not in (("https", "http") if local else ("https",)):
        raise ValueError(f"{url!r} is no https URL")


class _Key(NamedTuple):
    key: Any
    algorithm: str | None


def _usable(document: Any) -> dict[str, _Key]:
    """The keys of a JWKS that can verify a signature, by their ids."""
    keys: dict[str, _Key] = {}
    for entry in document["keys"]:
        if entry.get("use", "sig") != "sig" or entry.get("kty") == "oct" or "kid" not in entry:
            continue
        # Keys of kinds that are not known are other people's.
        with suppress(jwt.PyJWTError):
            keys[entry["kid"]] = _Key(jwt.PyJWK(entry).key, entry.get("alg"))
    return keys


class KeySet:
    """The issuer's keys, by their ids."""

    def __init__(self, issuer: str, jwks_url: str) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._keys: Mapping[str, _Key] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._asks_left = _ASKS_AT_ONCE
        self._asked = monotonic()

    def __len__(self) -> int:
        return len(self._keys)

    async def get(self, key_id: str) -> _Key | None:
        """The key, after a look at the issuer if it is not known."""
        known = self._keys.get(key_id)
        if known is not None:
            return known
        if self._may_ask():
            await self.refresh()
        return self._keys.get(key_id)

    def _may_ask(self) -> bool:
        """Anyone can make up ids of keys: the issuer is not to be flooded with them."""
        if self._refreshing is not None:
            return True
        now = monotonic()
        gained = (now - self._asked) / _ASK_INTERVAL_SECONDS
        self._asks_left = min(_ASKS_AT_ONCE, self._asks_left + gained)
        self._asked = now
        if self._asks_left < 1:
            return False
        self._asks_left -= 1
        return True

    async def refresh(self) -> None:
        """Get the keys anew; those that are known stay if that fails."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        # A caller that goes away leaves the others their keys.
        await asyncio.shield(self._refreshing)

    def _refreshed(self, _: object) -> None:
        self._refreshing = None

    async def _refresh(self) -> None:
        try:
            self._keys = await asyncio.to_thread(self._read)
        except Exception as error:
            _log.warning("keys of the issuer not read", issuer=self._issuer, cause=str(error))
        else:
            _log.info("keys of the issuer read", issuer=self._issuer, keys=len(self._keys))

    def _read(self) -> dict[str, _Key]:
        url = self._jwks_url
        if not url:
            found = _fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if found["issuer"] != self._issuer:
                raise ValueError(f"it calls itself {found['issuer']!r}")
            url = found["jwks_uri"]
        return _usable(_fetch(url))

    async def keep_fresh(self) -> None:
        """Refresh now and then, until cancelled: a key that is withdrawn goes."""
        while True:
            await asyncio.sleep(_REFRESH_INTERVAL_SECONDS)
            await self.refresh()


class Claims:
    """What the claims of a JWT say of its caller, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._subject = settings.oidc_subject_claim
        self._roles = settings.oidc_roles_claim
        self._mapping = roles_by_name(settings.oidc_roles, "--oidc-role", humans=True)
        self._human = [rule.partition("=")[::2] for rule in settings.oidc_human]

    def principal(self, claims: Mapping[str, Any]) -> Principal:
        """The caller. Raises `InvalidProofError`."""
        subject = _claim(claims, self._subject)
        if (
            not isinstance(subject, str)
            or not 0 < len(subject) <= _MAXIMUM_SUBJECT
            or not subject.isprintable()
            or subject in RESERVED_SUBJECTS
        ):
            raise InvalidProofError(f"the claim {self._subject} cannot be a caller's name")
        human = bool(self._human) and all(
            _holds(_claim(claims, name), value) for name, value in self._human
        )
        roles: frozenset[Role] = frozenset().union(
            *(
                self._mapping.get(value, frozenset())
                for value in _texts(_claim(claims, self._roles))
            )
        )
        if not human:
            roles -= HUMANS_ONLY
        kind = ActorKind.HUMAN if human else ActorKind.SERVICE
        return Principal(subject, kind, roles, Proof.JWT)


def _claim(claims: Any, path: str) -> Any:
    """The claim of this name, or at the end of this path; None if there is none."""
    if path in claims:
        return claims[path]
    for name in path.split("."):
        if not isinstance(claims, Mapping):
            return None
        claims = claims.get(name)
    return claims


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _holds(value: Any, wanted: str) -> bool:
    """Whether a claim is there and, if something is wanted of it, is or holds that."""
    if not wanted:
        return bool(value)
    if isinstance(value, bool):
        return wanted == str(value).lower()
    return wanted in _texts(value)


class _Remembered(NamedTuple):
    principal: Principal
    until: float


class JWTs:
    """Whose a JWT is."""

    def __init__(self, settings: Settings, keys: KeySet) -> None:
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._algorithms = list(settings.oidc_algorithms)
        self._keys = keys
        self._claims = Claims(settings)
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    def recall(self, digest: bytes) -> Principal | None:
        """The caller whose JWT was verified not long ago."""
        known = self._remembered.get(digest)
        return None if known is None or known.until < time() else known.principal

    def was_known(self, digest: bytes) -> bool:
        """Whether it held when last verified, however long ago that is."""
        return digest in self._remembered

    async def find(self, secret: str, digest: bytes) -> Principal:
        """The caller, by verifying the JWT. Raises `InvalidProofError`."""
        try:
            claims = await self._verified(secret)
            principal = self._claims.principal(claims)
        except InvalidProofError:
            self._remembered.pop(digest, None)
            raise
        until = min(claims["exp"] + _LEEWAY_SECONDS, time() + _REMEMBERED_SECONDS)
        self._remembered[digest] = _Remembered(principal, until)
        self._remembered.move_to_end(digest)
        if len(self._remembered) > _MAXIMUM_REMEMBERED:
            self._remembered.popitem(last=False)
        return principal

    async def _verified(self, secret: str) -> dict[str, Any]:
        """The claims of the JWT. Raises `InvalidProofError`."""
        try:
            header = jwt.get_unverified_header(secret)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in self._algorithms or not isinstance(key_id, str):
                raise InvalidProofError("a JWT without an id of its key, or of another algorithm")
            key = await self._keys.get(key_id)
            if key is None or key.algorithm not in (None, algorithm):
                raise InvalidProofError("a JWT of a key that the issuer does not have")
            return jwt.decode(
                secret,
                key.key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            # The library's text may hold a claim; its kind says enough.
            raise InvalidProofError(f"a JWT that does not hold: {type(error).__name__}") from None


def _check(settings: Settings) -> None:
    if jwt is None:
        raise ExposureError("--oidc-issuer takes the extra: in the clone, pip install -e '.[oidc]'")
    if not settings.oidc_audience:
        raise ExposureError("--oidc-issuer takes --oidc-audience, so that others' JWTs are refused")
    wrong = set(settings.oidc_algorithms) - ALGORITHMS
    if wrong or not settings.oidc_algorithms:
        raise ExposureError(
            f"--oidc-algorithm takes some of {', '.join(sorted(ALGORITHMS))}"
            + (f", not {', '.join(sorted(wrong))}" if wrong else "")
        )
    for option, url in (
        ("--oidc-issuer", settings.oidc_issuer),
        ("--oidc-jwks-url", settings.oidc_jwks_url),
    ):
        try:
            if url:
                _check_url(url)
        except ValueError as error:
            raise ExposureError(f"{option}: {error}") from error


@asynccontextmanager
async def verifying(settings: Settings) -> AsyncIterator[JWTs]:
    """What verifies JWTs until the block ends; its keys are read first, if the issuer is there.

    Raises `ExposureError`.
    """
    _check(settings)
    keys = KeySet(settings.oidc_issuer, settings.oidc_jwks_url)
    jwts = JWTs(settings, keys)
    await keys.refresh()
    refreshing = asyncio.create_task(keys.keep_fresh())
    try:
        yield jwts
    finally:
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
