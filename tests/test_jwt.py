"""JWTs of an identity provider: a real HTTP server with real keys."""

import asyncio
import base64
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep, time
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from callers import bearer, calling, complete_session
from harness import (
    Client,
    failed,
    record,
    refused,
    running_session,
    serving,
    settings_for,
    submit,
)
from infrascout.sessions.v1 import actor_pb2
from infrascout.sessions.v1 import agent_service_pb2 as agents_pb
from infrascout_sessions.exposure import ExposureError
from infrascout_sessions.server import running
from replicas import until

AUDIENCE = "api://infrascout-sessions"
NO_PROOF = (grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID")


@dataclass(frozen=True)
class Key:
    """A key of an issuer."""

    key_id: str
    private: Any = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    algorithm: str = "RS256"

    def public_jwk(self) -> dict[str, Any]:
        """As it stands in a JWKS."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        found: dict[str, Any] = json.loads(algorithm.to_jwk(self.private.public_key()))
        return {**found, "kid": self.key_id, "use": "sig", "alg": self.algorithm}


class Issuer:
    """An identity provider: serves its configuration and its keys."""

    def __init__(self) -> None:
        self.keys = [Key("first")]
        self.requests = 0
        self.delay_seconds = 0.0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                sleep(issuer.delay_seconds)
                body = json.dumps(issuer.document(self.path)).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start()

    def _start(self) -> None:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Go down."""
        self._server.shutdown()
        self._server.server_close()

    def restart(self) -> None:
        """Come back at the same address."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._start()

    def document(self, path: str) -> object:
        """What is at a path."""
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return {"keys": [key.public_jwk() for key in self.keys]}

    def token(self, key: Key | None = None, /, **claims: Any) -> str:
        """A JWT; `claims` replace those that are right, and None leaves one out."""
        key = key or self.keys[0]
        now = int(time())
        all_claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 600,
            "roles": ["Auditors"],
            "kind": "person",
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in all_claims.items() if value is not None},
            key.private,
            algorithm=key.algorithm,
            headers={"kid": key.key_id},
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a server that trusts it."""
        return {
            "oidc_issuer": self.url,
            "oidc_audience": AUDIENCE,
            "oidc_roles": ("Auditors=reviewer,viewer", "Assessors=operator,recorder,registrar"),
            "oidc_human": ("kind=person",),
            "maximum_failed_proofs": 1000,
        }


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An identity provider of its own for the test."""
    issuer = Issuer()
    yield issuer
    issuer.stop()


async def _list(client: Client, token: str) -> object:
    # A connection each: one whose proofs fail too often is told to wait.
    async with calling(client.address) as caller:
        return await caller.agents.ListAgents(agents_pb.ListAgentsRequest(), metadata=bearer(token))


async def test_people_and_programs_by_their_claims(database_url: str, issuer: Issuer) -> None:
    async with serving(database_url, **issuer.settings) as client:
        program = issuer.token(sub="assessor", kind="app", roles=["Assessors", "Auditors"])
        person = issuer.token(roles=["Auditors", "Others"])
        async with (
            calling(client.address, program) as assessor,
            calling(client.address, person) as ada,
        ):
            session_id = await running_session(assessor)
            execution = await record(assessor, session_id)
            assert execution.actor == actor_pb2.Actor(
                subject="assessor", kind=actor_pb2.ACTOR_KIND_SERVICE
            )
            await submit(assessor, session_id)
            await refused(
                complete_session(assessor, session_id),
                grpc.StatusCode.PERMISSION_DENIED,
                "REVIEWER_NOT_HUMAN",
                subject="assessor",
            )
            session = await complete_session(ada, session_id)
            assert session.review.reviewer == actor_pb2.Actor(
                subject="ada", kind=actor_pb2.ACTOR_KIND_HUMAN
            )
            await refused(
                running_session(ada),
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_MISSING",
                subject="ada",
                role="ROLE_REGISTRAR",
            )


async def test_with_an_issuer_nobody_is_local(database_url: str, issuer: Issuer) -> None:
    async with serving(database_url, **issuer.settings) as client:
        await refused(running_session(client), *NO_PROOF)


def _part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _public_pem(key: Key) -> bytes:
    return key.private.public_key().public_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _forged(issuer: Issuer, algorithm: str, secret: bytes | None) -> str:
    """A JWT with an algorithm that needs no private key."""
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    signed = f"{_part({'alg': algorithm, 'kid': 'first', 'typ': 'JWT'})}.{_part(claims)}"
    if secret is None:
        return f"{signed}."
    mac = hmac.new(secret, signed.encode(), sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _tampered(token: str) -> str:
    header, _, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    return f"{header}.{_part({**claims, 'sub': 'eve'})}.{signature}"


async def test_jwts_that_do_not_hold(database_url: str, issuer: Issuer) -> None:
    now = int(time())
    first = issuer.keys[0]
    bad = {
        "issuer": issuer.token(iss="https://evil.example"),
        "issuer with a slash": issuer.token(iss=f"{issuer.url}/"),
        "no issuer": issuer.token(iss=None),
        "audience": issuer.token(aud="api://another"),
        "no audience": issuer.token(aud=None),
        "expired": issuer.token(exp=now - 60),
        "no expiry": issuer.token(exp=None),
        "not yet": issuer.token(nbf=now + 60),
        "issued later": issuer.token(iat=now + 60),
        "no issue": issuer.token(iat=None),
        "another key of that name": issuer.token(Key("first")),
        "unknown key": issuer.token(Key("second")),
        "another algorithm of the key": issuer.token(Key("first", first.private, "PS256")),
        "an algorithm that is not asked for": issuer.token(Key("first", first.private, "RS512")),
        "another kind of key": issuer.token(
            Key("first", ec.generate_private_key(ec.SECP256R1()), "ES256")
        ),
        "none": _forged(issuer, "none", None),
        "None": _forged(issuer, "None", b""),
        "HS256 with the public key": _forged(issuer, "HS256", _public_pem(first)),
        "HS256 with the JWK": _forged(issuer, "HS256", json.dumps(first.public_jwk()).encode()),
        "tampered": _tampered(issuer.token()),
        "no subject": issuer.token(sub=None),
        "the server's subject": issuer.token(sub="infrascout-sessions"),
        "local": issuer.token(sub="local"),
        "a long subject": issuer.token(sub="x" * 256),
        "a control character": issuer.token(sub="ada\n"),
        "no JWT": "a.b.c",
        "two parts": issuer.token().rpartition(".")[0],
        "no key id": jwt.encode({"sub": "ada"}, first.private, algorithm="RS256"),
    }
    async with serving(database_url, **issuer.settings) as client:
        await _list(client, issuer.token())
        for name, token in bad.items():
            try:
                await refused(_list(client, token), *NO_PROOF)
            except AssertionError as error:
                raise AssertionError(name) from error
        await _list(client, issuer.token())


async def test_a_new_key_is_followed_within_one_call(database_url: str, issuer: Issuer) -> None:
    async with serving(database_url, **issuer.settings) as client:
        old = issuer.token(sub="old")
        await _list(client, old)
        issuer.keys = [Key("second")]
        await _list(client, issuer.token())
        issuer.keys = [Key("third"), *issuer.keys]
        await _list(client, issuer.token())
        await _list(client, issuer.token(issuer.keys[1], sub="other"))
        # The first key is gone, and with it what it signed but what was verified a moment ago.
        await refused(_list(client, issuer.token(Key("first"), sub="new")), *NO_PROOF)


async def test_made_up_keys_do_not_flood_the_issuer(database_url: str, issuer: Issuer) -> None:
    async with serving(database_url, **issuer.settings) as client:
        made_up = Key("made up")
        before = issuer.requests
        for number in range(30):
            key = Key(f"made up {number}", made_up.private)
            await refused(_list(client, issuer.token(key)), *NO_PROOF)
        # Two documents each.
        assert issuer.requests - before <= 2 * 6
        await _list(client, issuer.token())


async def test_bad_jwts_on_a_shared_connection_keep_no_good_one_out(
    database_url: str, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that each call finds its JWT forgotten.
    monkeypatch.setattr("infrascout_sessions.oidc._REMEMBERED_SECONDS", -1)
    settings = {**issuer.settings, "maximum_failed_proofs": 20}
    async with (
        serving(database_url, **settings) as client,
        calling(client.address) as shared,
        asyncio.timeout(10),
    ):

        async def ask(token: str) -> object:
            request = agents_pb.ListAgentsRequest()
            return await shared.agents.ListAgents(request, metadata=bearer(token))

        known = issuer.token(sub="known")
        await ask(known)
        bad = issuer.token(exp=1)
        for _ in range(10):
            await refused(ask(bad), *NO_PROOF)
        # Each is renewed now and then, and new to the server.
        for number in range(20):
            await ask(issuer.token(sub=f"caller-{number}"))
        # One that held before is looked at even where there is room for nothing new.
        flood = [
            asyncio.create_task(failed(ask(issuer.token(sub=f"bad-{number}", exp=1))))
            for number in range(100)
        ]
        await until(lambda: sum(call.done() for call in flood) >= 25, 5)
        for _ in range(5):
            await ask(known)
        for call in flood:
            call.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_known_keys_outlive_the_issuer(database_url: str, issuer: Issuer) -> None:
    async with serving(database_url, **issuer.settings) as client:
        await _list(client, issuer.token())
        issuer.stop()
        try:
            for number in range(5):
                await _list(client, issuer.token(sub=f"caller-{number}"))
            await refused(_list(client, issuer.token(Key("second"))), *NO_PROOF)
            await _list(client, issuer.token(sub="another"))
        finally:
            issuer.restart()


async def test_an_issuer_that_is_down_at_the_start(database_url: str, issuer: Issuer) -> None:
    issuer.stop()
    async with serving(database_url, **issuer.settings) as client:
        token = issuer.token()
        try:
            await refused(_list(client, token), *NO_PROOF)
        finally:
            issuer.restart()
        await _list(client, token)


async def test_a_slow_issuer_keeps_nobody_else_waiting(database_url: str, issuer: Issuer) -> None:
    async with serving(database_url, **issuer.settings) as client:
        await _list(client, issuer.token())
        issuer.delay_seconds = 1.5
        issuer.keys = [*issuer.keys, Key("second")]
        before = issuer.requests
        waiting = [
            asyncio.create_task(_list(client, issuer.token(issuer.keys[1], sub=f"new-{number}")))
            for number in range(5)
        ]
        await until(lambda: issuer.requests > before, 10)
        async with asyncio.timeout(1):
            for number in range(5):
                await _list(client, issuer.token(sub=f"known-{number}"))
        assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        # One look for all of them, at both documents.
        assert issuer.requests - before == 2


async def test_other_claims_and_algorithms(database_url: str, issuer: Issuer) -> None:
    """As Keycloak has it: roles inside a claim, and a readable name."""
    issuer.keys = [Key("curve", ec.generate_private_key(ec.SECP256R1()), "ES256")]
    settings = {
        **issuer.settings,
        "oidc_algorithms": ("ES256", "RS256"),
        "oidc_subject_claim": "preferred_username",
        "oidc_roles_claim": "realm_access.roles",
        "oidc_human": ("kind=person", "email_verified=true", "scp"),
        "oidc_jwks_url": f"{issuer.url}/keys",
    }
    async with serving(database_url, **settings) as client:
        claims: dict[str, Any] = {
            "preferred_username": "bob",
            "realm_access": {"roles": ["Assessors", "Auditors"]},
            "roles": None,
            "email_verified": True,
            "scp": "read write",
        }
        async with calling(client.address, issuer.token(**claims)) as bob:
            session_id = await running_session(bob)
            actor = (await record(bob, session_id)).actor
            assert actor == actor_pb2.Actor(subject="bob", kind=actor_pb2.ACTOR_KIND_HUMAN)
        for change in ({"email_verified": False}, {"scp": None}, {"kind": "app"}):
            token = issuer.token(**{**claims, **change})
            async with calling(client.address, token) as caller:
                await refused(
                    complete_session(caller, session_id),
                    grpc.StatusCode.PERMISSION_DENIED,
                    "REVIEWER_NOT_HUMAN",
                    subject="bob",
                )


async def test_a_key_is_for_its_own_algorithm(database_url: str, issuer: Issuer) -> None:
    settings = {**issuer.settings, "oidc_algorithms": ("RS256", "PS256")}
    async with serving(database_url, **settings) as client:
        first = issuer.keys[0]
        await _list(client, issuer.token())
        await refused(_list(client, issuer.token(Key("first", first.private, "PS256"))), *NO_PROOF)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"oidc_audience": ""}, "--oidc-audience"),
        ({"oidc_issuer": ""}, "--oidc-audience takes --oidc-issuer"),
        ({"oidc_issuer": "", "oidc_audience": ""}, "--oidc-role takes --oidc-issuer"),
        ({"oidc_algorithms": ("HS256",)}, "not HS256"),
        ({"oidc_algorithms": ("RS256", "none")}, "not none"),
        ({"oidc_algorithms": ()}, "--oidc-algorithm"),
        ({"oidc_issuer": "http://issuer.example"}, "no https URL"),
        ({"oidc_jwks_url": "file:///etc/passwd"}, "no https URL"),
        ({"oidc_roles": ("Auditors=admin",)}, "NAME=ROLE"),
    ],
)
async def test_settings_that_are_not_served(
    database_url: str, issuer: Issuer, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ExposureError, match=says):
        async with running(settings_for(database_url, **{**issuer.settings, **settings})):
            pass
