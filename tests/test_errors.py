import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import (
    NO_SESSION,
    Client,
    connected,
    failed,
    get_session,
    record,
    refused,
    register_agent,
    running_session,
    save_insight,
    serving,
    settings_for,
    start_session,
    writes_held_up,
)
from infrascout.sessions.v1 import error_reason_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb
from infrascout.sessions.v1.execution_pb2 import Output
from infrascout_sessions.errors import InvalidRequest, Refusal, Violation
from infrascout_sessions.messages.refusals import ANSWERS, DOMAIN, INTERNAL, Answer, bounded
from infrascout_sessions.models import new_id
from infrascout_sessions.server import running

CODE = grpc.StatusCode

# The table of the contract.
CONTRACT = {
    "INVALID_REQUEST": CODE.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": CODE.INVALID_ARGUMENT,
    "AGENT_NOT_FOUND": CODE.NOT_FOUND,
    "SESSION_NOT_FOUND": CODE.NOT_FOUND,
    "EXECUTION_NOT_FOUND": CODE.NOT_FOUND,
    "AGENT_BUSY": CODE.FAILED_PRECONDITION,
    "ILLEGAL_TRANSITION": CODE.FAILED_PRECONDITION,
    "SESSION_NOT_RUNNING": CODE.FAILED_PRECONDITION,
    "EXECUTION_FINISHED": CODE.FAILED_PRECONDITION,
    "OUTPUT_TOO_LARGE": CODE.FAILED_PRECONDITION,
    "OUTPUT_OFFSET_MISMATCH": CODE.ABORTED,
    "OUTPUT_OFFSET_BEYOND_END": CODE.OUT_OF_RANGE,
    "REQUEST_ID_REUSED": CODE.ALREADY_EXISTS,
    "PROOF_MISSING_OR_INVALID": CODE.UNAUTHENTICATED,
    "ROLE_MISSING": CODE.PERMISSION_DENIED,
    "REVIEWER_NOT_HUMAN": CODE.PERMISSION_DENIED,
    "REVIEWER_NOT_INDEPENDENT": CODE.PERMISSION_DENIED,
    "QUOTA_EXCEEDED": CODE.RESOURCE_EXHAUSTED,
    "STORAGE_FULL": CODE.RESOURCE_EXHAUSTED,
    "OVERLOADED": CODE.UNAVAILABLE,
    "DATABASE_UNAVAILABLE": CODE.UNAVAILABLE,
    "SHUTTING_DOWN": CODE.UNAVAILABLE,
    "INTERNAL_ERROR": CODE.INTERNAL,
}


def kinds(base: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_refusal_has_an_answer() -> None:
    assert set(kinds()) == set(ANSWERS)


def test_the_answers_are_the_contract_s() -> None:
    answers = [*ANSWERS.values(), INTERNAL]
    assert {answer.reason: answer.code for answer in answers} == CONTRACT
    assert len(answers) == len(CONTRACT)


def test_the_reasons_are_those_of_the_enum() -> None:
    names = set(error_reason_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert names == {f"ERROR_REASON_{reason}" for reason in CONTRACT}


_PROTO = Path(__file__).parent.parent / "protos/infrascout/sessions/v1/error_reason.proto"


def _documented() -> dict[str, str]:
    """What the .proto says of each reason."""
    values = re.findall(r"(?m)((?:^  //.*\n)+)^  ERROR_REASON_(\w+) = \d+;$", _PROTO.read_text())
    said = {name: re.sub(r"(?m)^  // ?", "", comment) for comment, name in values}
    del said["UNSPECIFIED"]
    return said


@pytest.mark.parametrize(("kind", "answer"), [*ANSWERS.items(), (None, INTERNAL)])
def test_the_manual_says_how_each_is_answered(kind: type[Refusal] | None, answer: Answer) -> None:
    said = _documented()[answer.reason]
    text, example = re.split(r"Example of (?:an ErrorInfo|the details):\n", said)
    shown = json.loads(example)
    [info] = [
        each
        for each in (shown if isinstance(shown, list) else [shown])
        if each.get("@type", "").endswith("ErrorInfo") or "reason" in each
    ]
    violations = kind is not None and issubclass(kind, InvalidRequest)
    names: list[str] = []
    if is_dataclass(kind) and not violations:
        names = [field.name for field in fields(kind)]
    assert (info["reason"], info["domain"]) == (answer.reason, DOMAIN)
    assert list(info.get("metadata", ())) == names
    [(code, metadata)] = re.findall(r"Code (\w+)\. (No metadata|Metadata: [^.]*)\.", text)
    assert code == answer.code.name
    assert (metadata == "No metadata") == (not names)
    for name in names:
        assert f"`{name}`" in metadata
    assert ("`google.rpc.BadRequest`" in text) == violations
    assert ("`google.rpc.RetryInfo`" in text) == (answer.retry_after_seconds is not None)


# Details over 8 KiB can break a call: what is told of violations has bounds.


def size(violations: list[Violation]) -> int:
    return sum(len(field.encode()) + len(text.encode()) for field, text in violations)


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 1000])
@pytest.mark.parametrize("length", [1, 50, 190, 200, 1000, 2000, 3900])
def test_violations_are_bounded_in_number_and_bytes(count: int, length: int) -> None:
    violations = [Violation(f"items[{n}]", "é" * (length // 2)) for n in range(count)]
    told = bounded(violations)
    assert 1 <= len(told) <= 20
    assert size(told) <= 4096
    if told == violations:
        return
    *first, (field, rest) = told
    assert first == violations[: len(first)]
    assert (field, rest) == ("", f"and {count - len(first)} more violations")
    # No more than fit were left out.
    assert len(told) == 20 or size(violations[: len(first) + 1]) > 4096 - 500


def test_one_violation_more_than_fits_is_counted_and_not_told() -> None:
    violations = [Violation("a", "x" * 2000)] * 3
    assert bounded(violations)[-1] == Violation("", "and 2 more violations")


# Faults, and what passes.


async def test_a_fault_tells_nothing_of_itself(database_url: str) -> None:
    def broken(prefix: str) -> str:
        raise RuntimeError("SELECT secret FROM somewhere.py")

    async with serving(database_url, ids=broken) as client:
        await register_agent(client)
        answer = await refused(start_session(client), CODE.INTERNAL, "INTERNAL_ERROR")
        assert answer.message == "internal error"
        # The next call does not suffer from it.
        await register_agent(client)


async def test_more_writes_than_may_wait_are_refused_and_the_others_done(
    database_url: str,
) -> None:
    # SQLite's one writer has taken one already, and two wait for it.
    taken = 3 if database_url.startswith("sqlite") else 2
    async with serving(database_url, maximum_waiting_writes=2) as client:
        await register_agent(client, "ag_before")
        async with writes_held_up(database_url):
            calls = [asyncio.create_task(register_agent(client, f"ag_{n}")) for n in range(8)]
            # The others are refused while those still wait.
            first_done = asyncio.as_completed(calls)
            for _, call in zip(range(8 - taken), first_done, strict=False):
                answer = await refused(call, CODE.UNAVAILABLE, "OVERLOADED")
                assert answer.retry_delay_seconds is not None
                assert answer.retry_delay_seconds <= 5
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == taken
        # Reads go on meanwhile, and once there is room again so do writes.
        await register_agent(client, "ag_after")


async def test_a_burst_of_calls_is_answered(database_url: str) -> None:
    async with serving(database_url, ids=new_id) as client:
        session_id = await running_session(client)
        made = await asyncio.gather(*(record(client, session_id) for _ in range(2500)))
        assert {execution.sequence for execution in made} == set(range(1, 2501))


@pytest.mark.parametrize("what", ["executions", "insights"])
async def test_a_stream_says_that_the_server_stops(database_url: str, what: str) -> None:
    server = running(settings_for(database_url))
    async with connected(f"127.0.0.1:{await server.__aenter__()}") as client:
        session_id = await running_session(client)
        # 16 MB do not fit into what gRPC buffers: the stream is under way until it is read.
        if what == "executions":
            for _ in range(16):
                await record(client, session_id, output=Output(text="x" * 1_000_000))
            stream: Any = client.sessions.ListExecutions(
                pb.ListExecutionsRequest(session_id=session_id)
            )
        else:
            for n in range(16):
                resources = ["x" * 4000] * 250
                await save_insight(client, session_id, key=str(n), affected_resources=resources)
            stream = client.sessions.ListInsights(pb.ListInsightsRequest(session_id=session_id))
        stops: list[asyncio.Task[Any]] = []

        async def read_and_stop() -> None:
            async for _ in stream:
                if not stops:
                    stops.append(asyncio.create_task(server.__aexit__(None, None, None)))

        answer = await refused(read_and_stop(), CODE.UNAVAILABLE, "SHUTTING_DOWN")
        assert answer.retry_delay_seconds is not None
        await stops[0]


@pytest.mark.parametrize(
    "path",
    [
        "/infrascout.sessions.v1.SessionService/NoSuchMethod",
        "/infrascout.sessions.v1.NoSuchService/GetSession",
    ],
)
async def test_an_unknown_method_is_refused_by_grpc(client: Client, path: str) -> None:
    error = await failed(client.channel.unary_unary(path, bytes, bytes)(b""))
    assert error.code() is CODE.UNIMPLEMENTED


async def test_a_refusal_harms_no_other_call(client: Client) -> None:
    session_id = await running_session(client)
    calls = [record(client, session_id if n % 2 else NO_SESSION, exit_code=n) for n in range(32)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n % 2:
            assert not isinstance(outcome, BaseException)
            assert outcome.exit_code == n
        else:
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert outcome.code() is CODE.NOT_FOUND
    assert (await get_session(client, session_id)).execution_count == 16
