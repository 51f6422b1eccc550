"""Every rule of every field of every request: at the limit accepted, one beyond refused."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from harness import (
    NO_SESSION,
    Client,
    Refused,
    at,
    collect,
    failed,
    get_session,
    record,
    refused,
    register_agent,
    running_session,
)
from infrascout.sessions.v1 import agent_service_pb2 as agents
from infrascout.sessions.v1 import insight_pb2, session_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as sessions
from infrascout.sessions.v1.execution_pb2 import Output

MIB: Final = 1024 * 1024
INT32_MAX: Final = 2**31 - 1
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND


class Rule(NamedTuple):
    """Values of a field that are accepted, and values that are refused.

    `found` says how a call that passes the rules ends; None is unset.
    """

    accepted: Sequence[Any]
    refused: Sequence[Any]
    found: grpc.StatusCode = grpc.StatusCode.OK
    item: str = ""
    """What the violation names behind the field."""
    reason: str = "INVALID_REQUEST"


def text(maximum: int, *, required: bool = False) -> Rule:
    blank = ["", " ", " \t\r\n", "\u3000\u2003"]
    return Rule(
        accepted=[
            "x" * maximum,
            "𝄞" * maximum,
            " x ",
            "\x01",
            "e\u0301",
            *([] if required else blank),
        ],
        refused=[
            "x" * (maximum + 1),
            "𝄞" * (maximum + 1),
            "a\0b",
            "\0",
            *(blank if required else []),
        ],
    )


def identifier(found: grpc.StatusCode, *, required: bool = True) -> Rule:
    return Rule(
        accepted=["x", "x" * 128, "azAZ09._:-", *([] if required else [""])],
        refused=[
            *("x" * 129, "a b", " a", "a/b", "a\n", "a\0", "é", "a,b"),
            *(["", " "] if required else [" "]),
        ],
        found=found,
    )


def lines(accepted: Sequence[str], refused_items: Sequence[str]) -> list[Rule]:
    """The rules of a list of texts: its items, and their number."""
    return [
        Rule(
            accepted=[[], *([item] for item in accepted)],
            refused=[[item] for item in refused_items],
            item="[0]",
        ),
        Rule(accepted=[[accepted[0][:1]] * 1000], refused=[[accepted[0][:1]] * 1001]),
    ]


CAPABILITIES: Final = ["a", "shell", "a" * 64, "a_0"]
NO_CAPABILITIES: Final = ["", " ", "a" * 65, "Shell", "0a", "_a", "a-b", "a b", "é", "a\n", "a\0"]

FIRST, LAST = (
    Timestamp(seconds=-62_135_596_800),
    Timestamp(seconds=253_402_300_799, nanos=10**9 - 1),
)
NO_TIMES: Final = [
    Timestamp(seconds=FIRST.seconds - 1),
    Timestamp(seconds=LAST.seconds + 1),
    Timestamp(seconds=2**63 - 1),
    Timestamp(seconds=-(2**63)),
    Timestamp(seconds=1, nanos=-1),
    Timestamp(seconds=1, nanos=10**9),
]
TIME = Rule(accepted=[None, FIRST, LAST, Timestamp()], refused=NO_TIMES)

OUTPUT = Rule(
    accepted=[
        None,
        Output(),
        Output(text=""),
        Output(text="x" * MIB),
        Output(text="é" * (MIB // 2)),
        Output(binary=b"\xff" * MIB),
        Output(text="\0"),
        Output(size_bytes=-1),
    ],
    refused=[
        Output(text="x" * (MIB + 1)),
        Output(text="é" * (MIB // 2) + "x"),
        Output(binary=b"\xff" * (MIB + 1)),
    ],
)

REQUEST_ID = text(64)
REASON = text(4096, required=True)
LIMIT = Rule(accepted=[0, 1, 200, 201, INT32_MAX], refused=[-1, -INT32_MAX - 1])
ANYTHING = Rule(accepted=[False, True], refused=[])
SESSION_ID = identifier(NOT_FOUND)
SEQUENCE = [
    Rule(accepted=[1], refused=[0, -1, -INT32_MAX - 1]),
    Rule(accepted=[2, INT32_MAX], refused=[], found=NOT_FOUND),
]
STREAM = Rule(accepted=[1, 2], refused=[0, 3, -1, INT32_MAX])

RULES: dict[type[Message], dict[str, Rule | list[Rule]]] = {
    agents.RegisterAgentRequest: {
        "agent_id": identifier(grpc.StatusCode.OK),
        "hostname": text(253, required=True),
        "os": text(200),
        "capabilities": lines(CAPABILITIES, NO_CAPABILITIES),
        "request_id": REQUEST_ID,
    },
    agents.GetAgentRequest: {"agent_id": identifier(NOT_FOUND)},
    agents.ListAgentsRequest: {
        "hostname": text(253),
        "limit": LIMIT,
        "page_token": Rule(accepted=[""], refused=["x"], reason="PAGE_TOKEN_INVALID"),
    },
    sessions.StartSessionRequest: {
        "agent_id": identifier(NOT_FOUND),
        "playbook": text(200, required=True),
        "description": text(4096),
        "request_id": REQUEST_ID,
    },
    sessions.GetSessionRequest: {"session_id": SESSION_ID},
    sessions.ListSessionsRequest: {
        "agent_id": identifier(grpc.StatusCode.OK, required=False),
        "hostname": text(253),
        "playbook": text(200),
        "status": Rule(
            accepted=[*session_pb2.SessionStatus.values()], refused=[6, 99, -1, INT32_MAX]
        ),
        "started_from": TIME,
        "started_before": TIME,
        "limit": LIMIT,
        "offset": Rule(accepted=[0, 10_000], refused=[10_001, INT32_MAX, -1, -INT32_MAX - 1]),
        "page_token": Rule(accepted=[""], refused=["x"], reason="PAGE_TOKEN_INVALID"),
        "include_total": ANYTHING,
    },
    sessions.ListExecutionsRequest: {
        "session_id": SESSION_ID,
        "after_sequence": Rule(accepted=[0, 1, INT32_MAX], refused=[-1, -INT32_MAX - 1]),
        "limit": LIMIT,
        "failed_only": ANYTHING,
        "max_output_bytes": Rule(
            accepted=[None, 0, 1, MIB, MIB + 1, 2**63 - 1], refused=[-1, -(2**63)]
        ),
        "follow": Rule(accepted=[False], refused=[]),
    },
    sessions.GetExecutionRequest: {
        "session_id": SESSION_ID,
        "sequence": SEQUENCE,
    },
    sessions.ReadOutputRequest: {
        "session_id": SESSION_ID,
        "sequence": SEQUENCE,
        "stream": STREAM,
        "offset": Rule(accepted=[0], refused=[-1, -(2**63)]),
    },
    sessions.ListInsightsRequest: {"session_id": SESSION_ID, "all_revisions": ANYTHING},
    sessions.SubmitSessionRequest: {
        "session_id": SESSION_ID,
        "summary": text(65_536, required=True),
        "request_id": REQUEST_ID,
    },
    sessions.FailSessionRequest: {
        "session_id": SESSION_ID,
        "reason": REASON,
        "request_id": REQUEST_ID,
    },
    sessions.InterruptSessionRequest: {
        "session_id": SESSION_ID,
        "reason": REASON,
        "request_id": REQUEST_ID,
    },
    recording.RecordExecutionRequest: {
        "session_id": SESSION_ID,
        "command": text(65_536, required=True),
        "capability": Rule(accepted=CAPABILITIES, refused=NO_CAPABILITIES),
        "output": OUTPUT,
        "error_output": OUTPUT,
        "exit_code": Rule(accepted=[None, 0, -1, INT32_MAX, -INT32_MAX - 1], refused=[]),
        "start_time": Rule(accepted=[FIRST, at(0), Timestamp()], refused=[None, *NO_TIMES]),
        "end_time": Rule(
            # The request starts at at(0.5).
            accepted=[None, at(0.5), at(0.500001), LAST],
            refused=[at(0.499999), at(-1), FIRST, Timestamp(), *NO_TIMES[1:3], NO_TIMES[5]],
        ),
        "step": text(200),
        "request_id": REQUEST_ID,
    },
    recording.BeginExecutionRequest: {
        "session_id": SESSION_ID,
        "command": text(65_536, required=True),
        "capability": Rule(accepted=CAPABILITIES, refused=NO_CAPABILITIES),
        "start_time": Rule(accepted=[FIRST, at(0), Timestamp()], refused=[None, *NO_TIMES]),
        "step": text(200),
        "request_id": REQUEST_ID,
    },
    recording.AppendOutputRequest: {
        "session_id": SESSION_ID,
        "sequence": SEQUENCE,
        "stream": STREAM,
        "offset": Rule(accepted=[0], refused=[-1, -(2**63)]),
        "data": Rule(accepted=[b"", b"\0\xff", b"x" * MIB], refused=[b"x" * (MIB + 1)]),
    },
    recording.FinishExecutionRequest: {
        "session_id": SESSION_ID,
        "sequence": SEQUENCE,
        "exit_code": Rule(accepted=[None, 0, -1, INT32_MAX, -INT32_MAX - 1], refused=[]),
        "end_time": Rule(accepted=[at(0.5), LAST], refused=[None, at(0.4), FIRST, *NO_TIMES]),
        "request_id": REQUEST_ID,
    },
    recording.SaveInsightRequest: {
        "session_id": SESSION_ID,
        "category": text(200, required=True),
        "key": text(200, required=True),
        "value": text(65_536, required=True),
        "severity": Rule(accepted=[*insight_pb2.Severity.values()], refused=[6, 99, -1, INT32_MAX]),
        "evidence": text(65_536),
        "affected_resources": lines(text(4096).accepted, text(4096).refused),
        "remediation_steps": lines(text(4096).accepted, text(4096).refused),
        "execution_sequences": [
            Rule(accepted=[[], [1]], refused=[[0], [-1], [-INT32_MAX - 1]], item="[0]"),
            Rule(accepted=[[1] * 1000], refused=[[1] * 1001]),
            Rule(accepted=[[2], [INT32_MAX]], refused=[], found=NOT_FOUND),
        ],
        "request_id": REQUEST_ID,
    },
}

METHODS = [
    method
    for module in (agents, sessions, recording)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    # Its items are RecordExecution's requests, and refused one by one.
    if method.name != "RecordExecutions"
]


def test_every_field_of_every_request_has_rules() -> None:
    assert {kind.DESCRIPTOR.full_name: set(fields) for kind, fields in RULES.items()} == {
        method.input_type.full_name: set(method.input_type.fields_by_name) for method in METHODS
    }


def calls(client: Client) -> dict[type[Message], Callable[[Any], Awaitable[object]]]:
    stubs = {
        "AgentService": client.agents,
        "SessionService": client.sessions,
        "RecordingService": client.recording,
    }

    def call(method: Any) -> Callable[[Any], Awaitable[object]]:
        stub = getattr(stubs[method.containing_service.name], method.name)
        return (lambda request: collect(stub(request))) if method.server_streaming else stub

    by_name = {method.input_type.full_name: call(method) for method in METHODS}
    return {kind: by_name[kind.DESCRIPTOR.full_name] for kind in RULES}


async def valid(client: Client, kind: type[Message], agent_id: str) -> dict[str, Any]:
    """The required fields of a request that succeeds, about an agent of this id."""
    await register_agent(client, agent_id)
    if "agent_id" in kind.DESCRIPTOR.fields_by_name:
        about = {} if kind is sessions.ListSessionsRequest else {"agent_id": agent_id}
    elif "session_id" in kind.DESCRIPTOR.fields_by_name:
        session_id = await running_session(client, agent_id)
        about = {"session_id": session_id}
        if kind in (recording.AppendOutputRequest, recording.FinishExecutionRequest):
            await client.recording.BeginExecution(
                recording.BeginExecutionRequest(
                    session_id=session_id, command="id", capability="shell", start_time=at(0.5)
                )
            )
        else:
            await record(client, session_id)
    else:
        about = {}
    required: dict[type[Message], dict[str, Any]] = {
        agents.RegisterAgentRequest: {"hostname": "web-1"},
        sessions.StartSessionRequest: {"playbook": "linux-baseline"},
        sessions.GetExecutionRequest: {"sequence": 1},
        sessions.SubmitSessionRequest: {"summary": "done"},
        sessions.FailSessionRequest: {"reason": "it broke"},
        sessions.InterruptSessionRequest: {"reason": "enough"},
        recording.RecordExecutionRequest: {
            "command": "id",
            "capability": "shell",
            "start_time": at(0.5),
        },
        recording.BeginExecutionRequest: {
            "command": "id",
            "capability": "shell",
            "start_time": at(0.5),
        },
        recording.AppendOutputRequest: {"sequence": 1, "stream": 1},
        recording.FinishExecutionRequest: {"sequence": 1, "end_time": at(1)},
        sessions.ReadOutputRequest: {"sequence": 1, "stream": 1},
        recording.SaveInsightRequest: {"category": "c", "key": "k", "value": "v"},
    }
    return about | required.get(kind, {})


CASES = [
    pytest.param(kind, field, rule, id=f"{kind.DESCRIPTOR.name}-{field}-{number}")
    for kind, fields in RULES.items()
    for field, rules in fields.items()
    for number, rule in enumerate(rules if isinstance(rules, list) else [rules])
]


@pytest.mark.parametrize(("kind", "field", "rule"), CASES)
async def test_a_field_is_accepted_at_its_limits_and_refused_beyond(
    client: Client, kind: type[Message], field: str, rule: Rule
) -> None:
    call = calls(client)[kind]
    names = (f"ag_{n}" for n in count())
    for value in rule.accepted:
        request = kind(**{**await valid(client, kind, next(names)), field: value})
        try:
            await call(request)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        assert code is rule.found, f"{value!r:.200}"
    for value in rule.refused:
        request = kind(**{**await valid(client, kind, next(names)), field: value})
        answer = await refused(call(request), grpc.StatusCode.INVALID_ARGUMENT, rule.reason)
        assert set(answer.fields) == {f"{field}{rule.item}"}, f"{value!r:.200}"
        assert all(description for _, description in answer.violations)


# Several violations.


async def test_every_violation_is_told_at_once(client: Client) -> None:
    answer = await refused(
        client.recording.RecordExecution(
            recording.RecordExecutionRequest(
                session_id="no id",
                command=" ",
                capability="Shell",
                output=Output(text="x" * (MIB + 1)),
                error_output=Output(binary=b"x" * (MIB + 1)),
                end_time=NO_TIMES[0],
                step="\0",
                request_id="x" * 65,
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert sorted(answer.fields) == sorted(
        [
            "session_id",
            "command",
            "capability",
            "output",
            "error_output",
            "start_time",
            "end_time",
            "step",
            "request_id",
        ]
    )


REQUIRED: dict[type[Message], list[str]] = {
    agents.RegisterAgentRequest: ["agent_id", "hostname"],
    agents.GetAgentRequest: ["agent_id"],
    sessions.StartSessionRequest: ["agent_id", "playbook"],
    sessions.GetSessionRequest: ["session_id"],
    sessions.ListExecutionsRequest: ["session_id"],
    sessions.GetExecutionRequest: ["session_id", "sequence"],
    sessions.ListInsightsRequest: ["session_id"],
    sessions.SubmitSessionRequest: ["session_id", "summary"],
    sessions.FailSessionRequest: ["session_id", "reason"],
    sessions.InterruptSessionRequest: ["session_id", "reason"],
    recording.RecordExecutionRequest: ["session_id", "command", "capability", "start_time"],
    recording.BeginExecutionRequest: ["session_id", "command", "capability", "start_time"],
    recording.AppendOutputRequest: ["session_id", "sequence", "stream"],
    recording.FinishExecutionRequest: ["session_id", "sequence", "end_time"],
    sessions.ReadOutputRequest: ["session_id", "sequence", "stream"],
    recording.SaveInsightRequest: ["session_id", "category", "key", "value"],
}


async def test_an_empty_request_lacks_what_is_required(client: Client) -> None:
    for kind, call in calls(client).items():
        if kind in REQUIRED:
            answer = await refused(
                call(kind()), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"
            )
            assert answer.fields == REQUIRED[kind]
            assert REQUIRED[kind][0] in answer.message
        else:
            await call(kind())


async def refused_capabilities(client: Client, violated: int) -> Refused:
    return await refused(
        client.agents.RegisterAgent(
            agents.RegisterAgentRequest(
                agent_id="ag_1", hostname="web-1", capabilities=["no capability"] * violated
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )


@pytest.mark.parametrize("violated", [1, 2, 19, 20])
async def test_up_to_20_violations_are_all_told(client: Client, violated: int) -> None:
    answer = await refused_capabilities(client, violated)
    assert answer.fields == [f"capabilities[{n}]" for n in range(violated)]


@pytest.mark.parametrize("violated", [21, 22, 1000])
async def test_of_more_violations_the_last_entry_says_how_many(
    client: Client, violated: int
) -> None:
    answer = await refused_capabilities(client, violated)
    *told, (field, rest) = answer.violations
    assert len(answer.violations) == 20
    assert [name for name, _ in told] == [f"capabilities[{n}]" for n in range(19)]
    assert field == ""
    assert rest == f"and {violated - 19} more violations"


async def test_a_refused_request_changes_nothing(client: Client) -> None:
    session_id = await running_session(client)
    before = await get_session(client, session_id)
    for call in (
        record(client, session_id, step="\0"),
        client.sessions.SubmitSession(sessions.SubmitSessionRequest(session_id=session_id)),
        client.agents.RegisterAgent(agents.RegisterAgentRequest(agent_id="ag_1")),
    ):
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert await get_session(client, session_id) == before


async def test_rules_come_before_whether_the_session_exists(client: Client) -> None:
    await refused(
        record(client, NO_SESSION, capability=""),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )


# What is no message at all.


def raw(client: Client, method: Any) -> Callable[[bytes], Awaitable[object]]:
    path = f"/{method.containing_service.full_name}/{method.name}"

    def call(data: bytes) -> Awaitable[object]:
        if method.server_streaming:
            return collect(client.channel.unary_stream(path, _same, _same)(data))
        return client.channel.unary_unary(path, _same, _same)(data)

    return call


def _same(data: bytes) -> bytes:
    return data


NO_MESSAGES: Final = {
    "no tag": b"\xff\xff\xff",
    "cut": b"\x0a\x05ab",
    "no UTF-8": b"\x0a\x02\xc3\x28",
    "an end without a start": b"\x0c",
    "field 0": b"\x00\x01",
}


@pytest.mark.parametrize("case", NO_MESSAGES)
async def test_bytes_that_are_no_message(client: Client, case: str) -> None:
    for method in METHODS:
        answer = await refused(
            raw(client, method)(NO_MESSAGES[case]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        )
        assert answer.fields == [""]
        assert method.input_type.full_name in answer.message


async def test_unknown_fields_are_ignored(client: Client) -> None:
    session_id = await running_session(client)
    method = sessions.DESCRIPTOR.services_by_name["SessionService"].methods_by_name["GetSession"]
    request = sessions.GetSessionRequest(session_id=session_id).SerializeToString()
    reply = await raw(client, method)(request + b"\xf8\x07\x01")
    expected = sessions.GetSessionResponse(session=await get_session(client, session_id))
    assert sessions.GetSessionResponse.FromString(reply) == expected  # type: ignore[arg-type]


async def test_a_message_over_4_mib_is_refused_by_grpc(client: Client) -> None:
    unary = [method for method in METHODS if not method.server_streaming]
    streaming = [method for method in METHODS if method.server_streaming]
    for method in (unary[0], streaming[0]):
        error = await failed(raw(client, method)(b"\0" * (4 * MIB + 1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-status-details-bin" not in dict(error.trailing_metadata())


async def test_a_message_of_4_mib_is_read(client: Client) -> None:
    request = agents.RegisterAgentRequest(agent_id="ag_1", hostname="x" * (4 * MIB - 11))
    assert request.ByteSize() == 4 * MIB
    await refused(
        client.agents.RegisterAgent(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"
    )
