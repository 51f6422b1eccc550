"""Bearer tokens: issued, taken, expired, revoked; and who is on record."""

import asyncio
import json
import re
import secrets
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from callers import (
    HUMAN,
    SERVICE,
    bearer,
    calling,
    in_database,
    make_token,
    revoke,
)
from harness import (
    CONSOLE_SCRIPT,
    Client,
    FrozenClock,
    at,
    clean_environment,
    database_connection,
    failed,
    get_session,
    record,
    record_request,
    refused,
    register_agent,
    running_session,
    save_insight,
    service_process,
    serving,
    start_session,
    submit,
)
from infrascout.sessions.v1 import actor_pb2
from infrascout.sessions.v1 import agent_service_pb2 as agents_pb
from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout_sessions.cli import app
from infrascout_sessions.models import ActorKind, Role, system_clock
from infrascout_sessions.storage.repository import tokens
from infrascout_sessions.tokens import PREFIX, TokenError, digest_of, issue

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
NO_PROOF = (UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID")
ASSESSOR = (Role.OPERATOR, Role.RECORDER, Role.VIEWER, Role.REGISTRAR)


# Who is on record.


async def test_the_actor_on_every_record_is_who_called(database_url: str) -> None:
    token = await make_token(database_url, "assessor-7", SERVICE, *ASSESSOR)
    person = await make_token(database_url, "bob@example.org", HUMAN, *ASSESSOR)
    service = actor_pb2.Actor(subject="assessor-7", kind=actor_pb2.ACTOR_KIND_SERVICE)
    human = actor_pb2.Actor(subject="bob@example.org", kind=actor_pb2.ACTOR_KIND_HUMAN)
    async with (
        serving(database_url) as client,
        calling(client.address, token) as assessor,
        calling(client.address, person) as bob,
    ):
        session_id = await running_session(assessor)
        assert (await record(bob, session_id)).actor == human
        assert (await record(assessor, session_id)).actor == service
        assert (await save_insight(bob, session_id)).actor == human
        session = await submit(bob, session_id)
        assert [step.actor for step in session.transitions] == [service, human]


async def test_a_request_id_belongs_to_its_caller(database_url: str) -> None:
    first = await make_token(database_url, "first", SERVICE, *ASSESSOR)
    second = await make_token(database_url, "second", SERVICE, *ASSESSOR)
    async with (
        serving(database_url) as client,
        calling(client.address, first) as one,
        calling(client.address, second) as other,
    ):
        session_id = await running_session(one)
        mine = await record(one, session_id, request_id="r1")
        assert (await record(one, session_id, request_id="r1")) == mine
        assert (await record(other, session_id, request_id="r1")).sequence == 2


# What a token is.


def test_tokens_have_256_random_bits_and_can_be_recognised() -> None:
    token, kept = issue("ada", HUMAN, [Role.REVIEWER], None)
    assert re.fullmatch(r"infrascout_[A-Za-z0-9_-]{43}", token)
    assert kept.digest == digest_of(token)
    assert token not in repr(kept)
    assert len({issue("ada", HUMAN, [Role.VIEWER], None)[0] for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("name", "kind", "roles", "why"),
    [
        ("bot", SERVICE, [Role.REVIEWER], "only a human reviews"),
        ("bot", SERVICE, list(Role), "only a human reviews"),
        ("ada", HUMAN, [], "--role"),
        ("local", SERVICE, [Role.VIEWER], "the server's own name"),
        ("infrascout-sessions", SERVICE, [Role.VIEWER], "the server's own name"),
        ("", HUMAN, [Role.VIEWER], "no name"),
        ("a b", HUMAN, [Role.VIEWER], "no name"),
        ("-x", HUMAN, [Role.VIEWER], "no name"),
        ("a\n", HUMAN, [Role.VIEWER], "no name"),
        ("x" * 129, HUMAN, [Role.VIEWER], "no name"),
    ],
)
def test_tokens_that_are_not_issued(
    name: str, kind: ActorKind, roles: list[Role], why: str
) -> None:
    with pytest.raises(TokenError, match=why):
        issue(name, kind, roles, None)


async def test_the_database_refuses_a_reviewer_that_is_a_service(database_url: str) -> None:
    await make_token(database_url, "ada", HUMAN, Role.REVIEWER)
    with pytest.raises(sa.exc.IntegrityError, match="reviewer_is_human"):
        async with database_connection(database_url) as connection:
            await connection.execute(sa.text("UPDATE tokens SET kind = 'service'"))


async def test_a_name_is_one_caller_for_good(database_url: str) -> None:
    first = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    with pytest.raises(TokenError, match="not revoked"):
        await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    await revoke(database_url, "ada")
    with pytest.raises(TokenError, match="no active token"):
        await revoke(database_url, "ada")
    with pytest.raises(TokenError, match="on record as a human"):
        await make_token(database_url, "ada", SERVICE, Role.VIEWER)
    second = await make_token(database_url, "ada", HUMAN, Role.OPERATOR)
    every = await in_database(database_url, tokens.every, system_clock)
    assert [(token.name, token.revoke_time is None) for token in every] == [
        ("ada", False),
        ("ada", True),
    ]
    assert {token.digest for token in every} == {digest_of(first), digest_of(second)}


# Taken or not.


async def _list(client: Client, **arguments: Any) -> object:
    return await client.agents.ListAgents(agents_pb.ListAgentsRequest(), **arguments)


async def test_a_refusal_does_not_say_what_was_wrong(database_url: str) -> None:
    messages = set()
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    await revoke(database_url, "ada")
    async with serving(database_url, require_identity=True) as client:
        for metadata in ((), bearer(token), bearer(token[:-1]), bearer("x.y.z"), bearer(token) * 2):
            how = await refused(_list(client, metadata=metadata), *NO_PROOF)
            messages.add(how.message)
    assert len(messages) == 1
    assert token not in messages.pop()


async def test_the_scheme_in_any_case(database_url: str) -> None:
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    async with serving(database_url, require_identity=True) as client:
        for scheme in ("Bearer", "bearer", "BEARER"):
            await _list(client, metadata=(("authorization", f"{scheme} {token}"),))


async def test_a_role_that_is_missing(database_url: str) -> None:
    token = await make_token(database_url, "dashboard", SERVICE, Role.VIEWER)
    async with serving(database_url) as client, calling(client.address, token) as caller:
        how = await refused(
            register_agent(caller),
            grpc.StatusCode.PERMISSION_DENIED,
            "ROLE_MISSING",
            subject="dashboard",
            role="ROLE_REGISTRAR",
        )
        assert "dashboard lacks ROLE_REGISTRAR" in how.message


async def test_a_token_expires(database_url: str, clock: FrozenClock) -> None:
    expire_time = at(60).ToMicroseconds()
    token = await make_token(
        database_url, "ada", HUMAN, Role.VIEWER, expire_time=expire_time, clock=clock
    )
    async with (
        serving(database_url, clock=clock) as client,
        calling(client.address, token) as caller,
    ):
        clock.advance(59.999999)
        await _list(caller)
        # At once: what is kept in memory knows when it ends.
        clock.advance(0.000001)
        await refused(_list(caller), *NO_PROOF)


async def test_a_revoked_token_is_refused_within_5_seconds_on_every_replica(
    database_url: str, tmp_path: Path
) -> None:
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    # A process that only looks: SQLite has one server a file, and so this stands for a replica that
    # learns of the revocation from the database alone, as the server itself does here.
    async with (
        serving(database_url) as client,
        calling(client.address, token) as caller,
    ):
        deadline = None
        while True:
            try:
                await _list(caller)
            except grpc.aio.AioRpcError as error:
                assert error.code() is UNAUTHENTICATED  # noqa: PT017 - any other is a failure
                break
            if deadline is None:
                await revoke(database_url, "ada")
                deadline = monotonic() + 5
            assert monotonic() < deadline
            await asyncio.sleep(0.02)
        assert deadline is not None
        await refused(_list(caller), *NO_PROOF)


async def test_a_token_is_taken_as_soon_as_it_is_made(database_url: str) -> None:
    async with serving(database_url, require_identity=True) as client:
        token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
        async with calling(client.address, token) as caller:
            await _list(caller)


async def test_many_first_calls_at_once_with_a_good_token_are_all_answered(
    database_url: str,
) -> None:
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    async with serving(database_url) as client, calling(client.address, token) as caller:
        await asyncio.gather(*(_list(caller) for _ in range(64)))


async def test_an_open_stream_ends_when_its_token_is_revoked(database_url: str) -> None:
    token = await make_token(database_url, "watcher", SERVICE, Role.VIEWER)
    async with serving(database_url) as client, calling(client.address, token) as watcher:
        session_id = await running_session(client)
        request = session_service.ListExecutionsRequest(session_id=session_id, follow=True)
        stream: Any = watcher.sessions.ListExecutions(request)
        await record(client, session_id)
        assert (await stream.read()).executions
        await revoke(database_url, "watcher")
        await asyncio.sleep(4)

        async def rest() -> list[object]:
            return [message async for message in stream]

        waiting = asyncio.create_task(rest())
        await record(client, session_id)
        async with asyncio.timeout(5):
            await refused(waiting, *NO_PROOF)


async def test_quiet_streams_end_when_their_token_is_revoked_and_no_others(
    database_url: str,
) -> None:
    revoked, kept, expiring = [
        await make_token(database_url, name, SERVICE, Role.VIEWER, expire_time=expire_time)
        for name, expire_time in (
            ("revoked", None),
            ("kept", None),
            ("expiring", system_clock() + 3_000_000),
        )
    ]
    async with (
        serving(database_url) as client,
        calling(client.address, revoked) as one,
        calling(client.address, revoked) as other,
        calling(client.address, kept) as third,
        calling(client.address, expiring) as fourth,
    ):
        session_id = await running_session(client)
        await record(client, session_id)
        request = session_service.ListExecutionsRequest(session_id=session_id, follow=True)
        ending = [
            aiter(follower.sessions.ListExecutions(request))
            for follower in (one, other, fourth)
            for _ in range(20)
        ]
        staying = [
            aiter(follower.sessions.ListExecutions(request))
            for follower in (third, client)
            for _ in range(20)
        ]
        for stream in (*ending, *staying):
            assert len((await anext(stream)).executions) == 1
        await revoke(database_url, "revoked")
        revoked_at = monotonic()

        async def rest(stream: Any) -> list[int]:
            return [one.sequence async for message in stream for one in message.executions]

        # Nothing passes meanwhile.
        await asyncio.gather(*(refused(rest(stream), *NO_PROOF) for stream in ending))
        assert monotonic() - revoked_at < 5
        await record(client, session_id)
        await submit(client, session_id)
        assert await asyncio.gather(*map(rest, staying)) == [[2]] * len(staying)
        # Nothing of those that have ended is left in the way of others.
        assert (await get_session(third, session_id)).execution_count == 2


async def test_records_of_a_stream_stop_when_its_token_is_revoked(database_url: str) -> None:
    token = await make_token(database_url, "tool", SERVICE, Role.RECORDER)
    async with serving(database_url) as client, calling(client.address, token) as tool:
        session_id = await running_session(client)
        go_on = asyncio.Event()

        async def requests() -> Any:
            message = pb.RecordExecutionsRequest(executions=[record_request(session_id)])
            yield message
            await go_on.wait()
            yield message

        stream: Any = tool.recording.RecordExecutions(requests())
        assert (await stream.read()).results[0].HasField("recorded")
        await revoke(database_url, "tool")
        await asyncio.sleep(4)
        go_on.set()

        async def rest() -> list[object]:
            return [message async for message in stream]

        await refused(rest(), *NO_PROOF)
        assert (await get_session(client, session_id)).execution_count == 1


async def test_the_last_use_is_noted_to_the_minute_and_not_at_once(
    database_url: str, clock: FrozenClock
) -> None:
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER, clock=clock)

    async def last_use() -> int | None:
        found = await in_database(database_url, partial(tokens.find, digest_of(token)), clock)
        return found.last_use_time  # type: ignore[no-any-return]

    async with (
        serving(database_url, clock=clock) as client,
        calling(client.address, token) as caller,
    ):
        clock.advance(90)
        for _ in range(20):
            await _list(caller)
        assert await last_use() is None
    # The server writes it down once a minute, and when it stops.
    assert await last_use() == at(60).ToMicroseconds()


async def test_health_and_reflection_ask_for_no_proof(database_url: str) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with serving(database_url, require_identity=True) as client:
        for metadata in ((), bearer("nonsense"), bearer("nonsense") * 2):
            health: Any = health_pb2_grpc.HealthStub(client.channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watching = health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            watching.cancel()

            async def ask() -> Any:
                yield reflection_pb2.ServerReflectionRequest(list_services="")

            channel: Any = client.channel
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            [listed] = [each async for each in stub.ServerReflectionInfo(ask(), metadata=metadata)]
            assert "infrascout.sessions.v1.ReviewService" in str(listed)


# The command line, beside a server.


async def _command(database_url: str, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        str(CONSOLE_SCRIPT),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(INFRASCOUT_DATABASE_URL=database_url),
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_tokens_are_made_and_revoked_beside_a_running_server(
    database_url: str, tmp_path: Path
) -> None:
    from callers import complete_session

    log = tmp_path / "log"
    access = tmp_path / "access.log"
    async with service_process(database_url, log, "--access-log", str(access)) as server:
        create = ("token", "create")
        code, out, err = await _command(
            database_url, *create, "ada", "--human", "--role", "reviewer", "--expires-in", "90d"
        )
        assert (code, err) == (0, "")
        token = out.removesuffix("\n")
        assert re.fullmatch(rf"{PREFIX}\S{{43}}", token)

        # The whole flow: a service runs it, without ceremony, and a human completes it.
        async with calling(server.address) as local, calling(server.address, token) as ada:
            await register_agent(local)
            session_id = (await start_session(local)).session_id
            await record(local, session_id, output={"text": "s3cret output"})
            await submit(local, session_id)
            session = await complete_session(ada, session_id, comment="seen")
            assert session.review.reviewer.subject == "ada"

            assert (await _command(database_url, "token", "revoke", "ada"))[0] == 0
            await asyncio.sleep(4)
            await failed(complete_session(ada, session_id))
    code, out, _ = await _command(database_url, "token", "list")
    assert code == 0
    line = out.splitlines()[1].split()
    assert line[:4] == ["ada", "human", "reviewer", "revoked"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\dZ", line[6])
    # No secret and no evidence is in any log.
    for content in (log.read_text(), access.read_text(), out):
        assert token not in content
        assert token.removeprefix(PREFIX) not in content
        assert digest_of(token).hex() not in content
        assert "s3cret" not in content
    lines = [json.loads(each) for each in access.read_text().splitlines()]
    completed = [each for each in lines if each["method"].endswith("/CompleteSession")]
    assert [
        (each["event"], each["subject"], each["kind"], each["proof"], each["result"])
        for each in completed
    ] == [
        ("access", "ada", "human", "token", "OK"),
        ("access", None, None, None, "UNAUTHENTICATED"),
    ]
    assert completed[0]["session_id"] == session_id


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("bot", "--service", "--role", "reviewer"), 1, "only a human reviews"),
        (("bot", "--role", "viewer"), 2, "either --human or --service"),
        (("bot", "--human", "--service", "--role", "viewer"), 2, "either --human or --service"),
        (("bot", "--service", "--role", "admin"), 2, "admin"),
        (("bot", "--service"), 2, "--role"),
        (("bot", "--service", "--role", "viewer", "--expires-in", "soon"), 2, "90d"),
        (("local", "--service", "--role", "viewer"), 1, "own name"),
    ],
)
def test_commands_that_are_refused(
    database_url: str, arguments: tuple[str, ...], code: int, says: str
) -> None:
    environment = clean_environment(INFRASCOUT_DATABASE_URL=database_url, COLUMNS="200")
    result = CliRunner().invoke(app, ["token", "create", *arguments], env=environment)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr


async def test_where_there_is_no_database(tmp_path: Path) -> None:
    database = tmp_path / "typo.db"
    url = f"sqlite+aiosqlite:///{database}"
    for command in (("list",), ("revoke", "ada")):
        code, out, err = await _command(url, "token", *command)
        assert (code, out) == (1, "")
        assert err == f"infrascout-sessions: there is no database {database}\n"
    assert not database.exists()
    # It may be made before the server first starts, and is of no use in any other database.
    create = ("token", "create", "ada", "--human", "--role", "viewer")
    code, out, err = await _command(url, *create)
    assert (code, out[: len(PREFIX)]) == (0, PREFIX)
    assert err == f"infrascout-sessions: made the database {database}: is it the server's?\n"


async def test_an_unknown_token_has_no_bytes_in_the_log(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    secret = PREFIX + secrets.token_urlsafe(32)
    async with service_process(database_url, log) as server, calling(server.address) as caller:
        for shown in (secret, f"{secret}!", "header.claims.signature"):
            await refused(_list(caller, metadata=bearer(shown)), *NO_PROOF)
    content = log.read_text()
    assert "no such token" in content
    for hidden in (secret.removeprefix(PREFIX), "claims.signature"):
        assert hidden not in content
