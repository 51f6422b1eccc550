import asyncio
import re
import time
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import sqlalchemy as sa

import harness
from assistants import MODES, TRANSPORTS, Assistant, characters, over_stdio, text
from filling import fill
from harness import (
    NO_SESSION,
    Client,
    FrozenClock,
    at,
    complete,
    list_executions,
    list_insights,
    record,
    record_request,
    register_agent,
    running_session,
    serving,
    start_session,
    submit,
)
from infrascout.sessions.v1.execution_pb2 import Output
from infrascout.sessions.v1.insight_pb2 import SEVERITY_HIGH
from infrascout.sessions.v1.recording_service_pb2 import (
    BeginExecutionRequest,
    RecordExecutionsRequest,
)
from infrascout.sessions.v1.session_service_pb2 import (
    FailSessionRequest,
    InterruptSessionRequest,
    StartSessionRequest,
    SubmitSessionRequest,
)
from scripted import refusing, scripted

NO_DEFAULT: Final = None

# The document of the session tools, and nothing else: required ones, and optional ones with their
# default. `session_list_executions` has two more, for its pages.
SESSION_TOOLS: Final[dict[str, tuple[set[str], dict[str, Any]]]] = {
    "session_start": ({"agent_id", "playbook"}, {"description": NO_DEFAULT}),
    "session_get": ({"session_id"}, {}),
    "session_list": (
        set(),
        {
            "agent_id": NO_DEFAULT,
            "hostname": NO_DEFAULT,
            "playbook": NO_DEFAULT,
            "status": NO_DEFAULT,
            "limit": 20,
            "offset": NO_DEFAULT,
        },
    ),
    "session_list_executions": (
        {"session_id"},
        {"after_sequence": NO_DEFAULT, "limit": NO_DEFAULT},
    ),
    "session_submit": ({"session_id", "summary"}, {}),
}
RECORDING_TOOLS: Final[dict[str, tuple[set[str], dict[str, Any]]]] = {
    "execution_record": (
        {"session_id", "command", "capability"},
        dict.fromkeys(
            ("output", "error_output", "exit_code", "start_time", "end_time", "step"), NO_DEFAULT
        ),
    ),
    "insight_save": (
        {"session_id", "category", "key", "value"},
        {
            "severity": "info",
            "evidence": NO_DEFAULT,
            "affected_resources": NO_DEFAULT,
            "remediation_steps": NO_DEFAULT,
            "execution_sequences": NO_DEFAULT,
        },
    ),
}
READING_TOOLS: Final[dict[str, tuple[set[str], dict[str, Any]]]] = {
    "execution_read_output": (
        {"session_id", "sequence"},
        {"stream": "output", "offset": NO_DEFAULT},
    ),
}


async def parameters(assistant: Assistant) -> dict[str, tuple[set[str], dict[str, Any]]]:
    listed = {}
    for name, tool in (await assistant.tools()).items():
        properties = tool.input_schema["properties"]
        required = set(tool.input_schema["required"])
        assert required <= set(properties)
        assert tool.input_schema["additionalProperties"] is False
        optional = {
            parameter: schema.get("default")
            for parameter, schema in properties.items()
            if parameter not in required
        }
        assert all("default" not in properties[parameter] for parameter in required)
        listed[name] = (required, optional)
    return listed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_tools_and_the_lifecycle(client: Client, transport: str, mode: str) -> None:
    await register_agent(client, "ag_3f8a1c2d")
    async with TRANSPORTS[transport](client.address, mode=mode) as assistant:
        assert await parameters(assistant) == SESSION_TOOLS

        started = await assistant.ask(
            "session_start",
            agent_id="ag_3f8a1c2d",
            playbook="security-review",
            description="Before the audit",
        )
        session_id = started["session_id"]
        assert started["status"] == "running"

        second = await assistant.refused(
            "session_start", agent_id="ag_3f8a1c2d", playbook="security-review"
        )
        assert f"agent ag_3f8a1c2d already runs session {session_id}: submit that one" in second
        assert f"call session_submit with session_id {session_id}" in second
        assert "Reason: AGENT_BUSY" in second

        first = await record(
            client, session_id, command="ss -tln", output=Output(text="State\nLISTEN\n")
        )
        await record(client, session_id, command="cat /x", exit_code=1, step="2.1")

        [listed] = (await assistant.ask("session_list", status="running"))["sessions"]
        assert listed["session_id"] == session_id
        page = await assistant.call("session_list_executions", session_id=session_id)
        assert "$ ss -tln\n| State\n| LISTEN" in text(page)
        assert page.structured_content["executions"][0] == {
            "sequence": 1,
            "execution_id": first.execution_id,
            "state": "exited",
            "command": "ss -tln",
            "capability": "shell",
            "output": {"text": "State\nLISTEN\n", "size_bytes": 13, "truncated": False},
            "exit_code": 0,
            "start_time": "2026-01-31T11:59:58Z",
            "end_time": "2026-01-31T11:59:59Z",
            "duration_seconds": 1.0,
        }
        assert "next_after_sequence" not in page.structured_content

        got = await assistant.ask("session_get", session_id=session_id)
        assert (got["execution_count"], got["failed_execution_count"]) == (2, 1)
        assert got["description"] == "Before the audit"

        submitted = await assistant.call(
            "session_submit", session_id=session_id, summary="One port is open."
        )
        assert submitted.structured_content["status"] == "pending_review"
        assert submitted.structured_content["summary"] == "One port is open."
        assert [step["status"] for step in submitted.structured_content["transitions"]] == [
            "running",
            "pending_review",
        ]
        assert "human reviewer" in text(submitted)

        again = await assistant.refused("session_submit", session_id=session_id, summary="Again")
        assert "Reason: ILLEGAL_TRANSITION" in again
        assert f"session_id: {session_id}" in again


async def test_a_whole_assessment_over_the_tools_alone(client: Client) -> None:
    await register_agent(client, "ag_1")
    async with over_stdio(client.address, "--tools", "recording") as assistant:
        assert await parameters(assistant) == SESSION_TOOLS | RECORDING_TOOLS
        session_id = (await assistant.ask("session_start", agent_id="ag_1", playbook="p"))[
            "session_id"
        ]
        recorded = await assistant.ask(
            "execution_record",
            session_id=session_id,
            command="ss -tln",
            capability="shell",
            output="LISTEN 0.0.0.0:5432",
            error_output="",
            exit_code=-1073741819,
            start_time="2026-01-31T12:00:00+01:00",
            end_time="2026-01-31T11:00:01.5Z",
            step="2.1",
        )
        assert (recorded["sequence"], recorded["state"]) == (1, "exited")
        killed = await assistant.ask(
            "execution_record", session_id=session_id, command="sleep 9", capability="shell"
        )
        assert (killed["sequence"], killed["state"]) == (2, "killed")
        insight = {
            "session_id": session_id,
            "category": "open_ports",
            "key": "tcp/5432",
            "value": "PostgreSQL listens everywhere",
            "severity": "high",
            "affected_resources": ["tcp/5432"],
            "remediation_steps": ["Bind it to loopback"],
            "execution_sequences": [1],
        }
        assert (await assistant.ask("insight_save", **insight))["revision"] == 1
        assert (await assistant.ask("insight_save", **insight))["revision"] == 1
        await assistant.ask("session_submit", session_id=session_id, summary="done")

        first, second = await list_executions(client, session_id)
        assert (first.output.text, first.exit_code) == ("LISTEN 0.0.0.0:5432", -1073741819)
        assert first.HasField("error_output")
        assert first.start_time.ToJsonString() == "2026-01-31T11:00:00Z"
        assert (first.end_time.ToMicroseconds() - first.start_time.ToMicroseconds()) == 1_500_000
        assert not second.HasField("output")
        [saved] = await list_insights(client, session_id)
        assert (saved.severity, list(saved.execution_sequences)) == (SEVERITY_HIGH, [1])


async def test_what_a_client_is_told_about_the_tools(client: Client) -> None:
    async with over_stdio(client.address, "--tools", "all") as assistant:
        assert await parameters(assistant) == SESSION_TOOLS | RECORDING_TOOLS | READING_TOOLS
        tools = await assistant.tools()
        hints = {
            name: (a.read_only_hint, a.destructive_hint, a.idempotent_hint, a.open_world_hint)
            for name, tool in tools.items()
            if (a := tool.annotations)
        }
        reads = (True, False, True, False)
        assert hints == {
            "session_start": (False, False, False, False),
            "session_get": reads,
            "session_list": reads,
            "session_list_executions": reads,
            "session_submit": (False, True, True, False),
            "execution_record": (False, False, False, False),
            "insight_save": (False, False, True, False),
            "execution_read_output": reads,
        }
        statuses = tools["session_list"].input_schema["properties"]["status"]["enum"]
        assert statuses == ["running", "pending_review", "completed", "failed", "interrupted"]
        for tool in tools.values():
            assert tool.description
            assert tool.output_schema
            assert tool.output_schema["type"] == "object"
            assert all(each["description"] for each in tool.input_schema["properties"].values())
        # That is for humans.
        assert not any("complete" in name or "review" in name for name in tools)
        assert "60,000 characters" in (tools["session_list_executions"].description or "")


# Refusals.


def check_no_leak(refusal: str) -> None:
    found = harness._LEAK.search(refusal)
    assert not found, found
    assert not re.search(r"127\.0\.0\.1|ipv4|grpc|pydantic|http", refusal), refusal


async def test_each_refusal_says_what_to_do(client: Client, clock: FrozenClock) -> None:
    running = await running_session(client, "ag_1")
    await record(client, running, output=Output(text="abc"))
    await register_agent(client, "ag_2")
    ended = (await start_session(client, "ag_2")).session_id
    await submit(client, ended)
    one: dict[str, Any] = {"command": "id", "capability": "shell"}
    found: dict[str, Any] = {"category": "c", "key": "k", "value": "v"}
    cases: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
        (
            "session_start",
            {"agent_id": "ag_1", "playbook": "p"},
            "AGENT_BUSY",
            ("ag_1", running, "session_submit"),
        ),
        (
            "session_start",
            {"agent_id": "ag_9", "playbook": "p"},
            "AGENT_NOT_FOUND",
            ("agent_id: ag_9", "No tool here enrols an agent"),
        ),
        (
            "session_start",
            {"agent_id": "a b", "playbook": " "},
            "INVALID_REQUEST",
            ("- agent_id: must be", "- playbook: must not be blank"),
        ),
        ("session_start", {}, "INVALID_REQUEST", ("- agent_id: is required", "- playbook: is")),
        ("session_get", {"session_id": NO_SESSION}, "SESSION_NOT_FOUND", (NO_SESSION,)),
        ("session_get", {"session_id": 7}, "INVALID_REQUEST", ("must be a string",)),
        ("session_list", {"status": "open"}, "INVALID_REQUEST", ("running, pending_review",)),
        ("session_list", {"limit": -1}, "INVALID_REQUEST", ("- limit: is -1",)),
        ("session_list", {"limit": 1.5}, "INVALID_REQUEST", ("- limit: must be a whole",)),
        ("session_list", {"limit": "20"}, "INVALID_REQUEST", ("- limit: must be a whole",)),
        ("session_list", {"limit": True}, "INVALID_REQUEST", ("- limit: must be a whole",)),
        ("session_list", {"limit": 2**40}, "INVALID_REQUEST", ("- limit: is",)),
        ("session_list", {"offset": 10_001}, "INVALID_REQUEST", ("at most 10,000",)),
        ("session_list", {"page": 2}, "INVALID_REQUEST", ("- page: is not a parameter",)),
        (
            "session_list_executions",
            {"session_id": running, "limit": 501, "after_sequence": -1},
            "INVALID_REQUEST",
            ("- limit: is 501", "- after_sequence: is -1"),
        ),
        (
            "session_list_executions",
            {"session_id": NO_SESSION},
            "SESSION_NOT_FOUND",
            ("session_list finds",),
        ),
        (
            "session_submit",
            {"session_id": running, "agent_id": "ag_1", "summary": "s"},
            "INVALID_REQUEST",
            ("the agent is the session's",),
        ),
        ("session_submit", {"session_id": running, "summary": " "}, "INVALID_REQUEST", ("blank",)),
        (
            "session_submit",
            {"session_id": running, "summary": "x" * 65_537},
            "INVALID_REQUEST",
            ("65,536",),
        ),
        ("session_submit", {"session_id": NO_SESSION, "summary": "s"}, "SESSION_NOT_FOUND", ()),
        (
            "session_submit",
            {"session_id": ended, "summary": "s"},
            "ILLEGAL_TRANSITION",
            (ended, "SESSION_STATUS_PENDING_REVIEW", "session_start"),
        ),
        (
            "execution_record",
            {"session_id": ended, **one},
            "SESSION_NOT_RUNNING",
            (ended, "Do not repeat this"),
        ),
        (
            "execution_record",
            {"session_id": running, "command": "id", "capability": "Shell", "start_time": "noon"},
            "INVALID_REQUEST",
            ("start_time: must be a time",),
        ),
        (
            "execution_record",
            {"session_id": running, "command": "id", "capability": "Shell"},
            "INVALID_REQUEST",
            ("- capability",),
        ),
        (
            "execution_record",
            {
                "session_id": running,
                **one,
                "start_time": "2026-01-02T00:00:00Z",
                "end_time": "2026-01-01T00:00:00Z",
            },
            "INVALID_REQUEST",
            ("- end_time: is before start_time",),
        ),
        (
            "insight_save",
            {"session_id": running, **found, "execution_sequences": [1, 7]},
            "EXECUTION_NOT_FOUND",
            ("sequence: 7", "session_list_executions"),
        ),
        ("insight_save", {"session_id": ended, **found}, "SESSION_NOT_RUNNING", ()),
        (
            "insight_save",
            {"session_id": running, **found, "severity": "huge", "remediation_steps": "a"},
            "INVALID_REQUEST",
            ("- severity: must be one of info", "- remediation_steps: must be a list"),
        ),
        (
            "execution_read_output",
            {"session_id": running, "sequence": 9},
            "EXECUTION_NOT_FOUND",
            (),
        ),
        (
            "execution_read_output",
            {"session_id": running, "sequence": 1, "offset": 4},
            "OUTPUT_OFFSET_BEYOND_END",
            ("an offset of at most 3",),
        ),
    ]
    async with over_stdio(client.address, "--tools", "all") as assistant:
        for tool, arguments, reason, parts in cases:
            result = await assistant.call(tool, **arguments)
            assert result.is_error, (tool, arguments)
            refusal = text(result)
            assert f"\nReason: {reason}" in refusal, refusal
            assert "\nWhat to do: " in refusal
            for part in parts:
                assert part in refusal, refusal
            check_no_leak(refusal)
            assert result.structured_content is None
            assert (result.meta or {})["sessions.infrascout/error"]["reason"] == reason
        with pytest.raises(Exception, match="there is no tool 'session_complete' here"):
            await assistant.call("session_complete", session_id=running)


# What the real server says at no test's wish.
FAULTS: Final = (
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", "disk is full", False),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "Wait a little", False),
    (grpc.StatusCode.UNAVAILABLE, "OVERLOADED", "Wait a little", False),
    (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", "is not known", True),
    (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "is not known", True),
    (grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID", "INFRASCOUT_TOKEN", False),
    (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING", "Do not repeat", False),
    (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "Call the tool again", False),
    (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR", "its log has the rest", False),
    (grpc.StatusCode.FAILED_PRECONDITION, "SOMETHING_NEW", "the server's text", False),
)
# What only gRPC says; its own text is not passed on.
TRANSPORT_FAULTS: Final = (
    (grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer in time", True),
    (grpc.StatusCode.UNIMPLEMENTED, "of an older version", False),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than", False),
    (grpc.StatusCode.UNKNOWN, "the call failed", True),
    # Asked for until the deadline, so the last step of the script.
    (grpc.StatusCode.UNAVAILABLE, "cannot be reached", True),
)


async def test_a_fault_of_the_service_reaches_the_model_as_text() -> None:
    # A delay beyond the deadline, so that each is asked for once.
    steps = [refusing(code, reason, 60, "the server's text") for code, reason, _, _ in FAULTS]
    async with (
        scripted(*steps) as script,
        over_stdio(script.address, "--deadline", "5") as assistant,
    ):
        for _, reason, part, unknown in FAULTS:
            refusal = await assistant.refused("session_submit", session_id="sess_1", summary="s")
            assert refusal.startswith("the server's text\n")
            assert f"\nReason: {reason}" in refusal
            assert part in refusal
            assert ("Whether it was done is not known" in refusal) == unknown
            check_no_leak(refusal)


async def test_what_grpc_says_is_put_in_our_own_words() -> None:
    said = "ipv4:127.0.0.1:1 SELECT Traceback grpc secret"
    steps = [refusing(code, message=said) for code, _, _ in TRANSPORT_FAULTS]
    async with (
        scripted(*steps) as script,
        over_stdio(script.address, "--deadline", "1") as assistant,
    ):
        for code, part, unknown in TRANSPORT_FAULTS:
            refusal = await assistant.refused("session_submit", session_id="sess_1", summary="s")
            assert part in refusal
            assert f"\nReason: {code.name}" in refusal
            assert ("Whether it was done is not known" in refusal) == unknown
            assert "secret" not in refusal
            check_no_leak(refusal)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_server_that_is_down_is_a_clear_error_within_the_deadline(transport: str) -> None:
    async with TRANSPORTS[transport]("127.0.0.1:1", "--deadline", "1.5") as assistant:
        for tool, arguments in (
            ("session_list", {}),
            ("session_list_executions", {"session_id": "sess_1"}),
            ("session_start", {"agent_id": "ag_1", "playbook": "p"}),
        ):
            began = time.monotonic()
            refusal = await assistant.refused(tool, **arguments)
            assert time.monotonic() - began < 4
            assert refusal.startswith("the session service cannot be reached\nWhat to do: Tell")
            assert ("is not known" in refusal) == (tool == "session_start")
            check_no_leak(refusal)


async def test_a_server_that_comes_back_is_found(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
    async with over_stdio(client.address, "--deadline", "20") as assistant:
        waiting = asyncio.create_task(assistant.ask("session_get", session_id=session_id))
        await asyncio.sleep(0.5)
        async with serving(database_url, listen=client.address):
            assert (await waiting)["session_id"] == session_id


async def test_calls_at_the_same_time(client: Client) -> None:
    async with over_stdio(client.address) as assistant:
        calls = [assistant.ask("session_list") for _ in range(20)]
        assert len(await asyncio.gather(*calls)) == 20


# Long results.


async def _record_many(client: Client, session_id: str, outputs: list[Output | None]) -> None:
    async def batches() -> Any:
        for first in range(0, len(outputs), 500):
            yield RecordExecutionsRequest(
                executions=[
                    record_request(session_id, command=f"echo {first + n}", output=output)
                    for n, output in enumerate(outputs[first : first + 500])
                ]
            )

    async for response in client.recording.RecordExecutions(batches()):
        assert all(result.HasField("recorded") for result in response.results)


async def test_ten_thousand_executions_are_read_to_the_end_in_pages(client: Client) -> None:
    session_id = await running_session(client)
    outputs: list[Output | None] = [Output(text=f"line {n}\n") for n in range(10_000)]
    outputs[10] = None
    for n in range(1000, 1030):
        outputs[n] = Output(text='\x01\x1b[31m"\\\n' * 5000)
    for n in range(2000, 2030):
        outputs[n] = Output(binary=bytes(range(256)) * 100)
    for n in range(3000, 3030):
        outputs[n] = Output(text="😀é\n" * 10_000)
    await _record_many(client, session_id, outputs)
    async with over_stdio(client.address) as assistant:
        sequences: list[int] = []
        after: int | None = 0
        pages = 0
        while after is not None:
            result = await assistant.call(
                "session_list_executions", session_id=session_id, after_sequence=after, limit=200
            )
            assert not result.is_error, text(result)
            assert characters(result) <= 60_000
            page = result.structured_content
            assert page["execution_count"] == 10_000
            for execution in page["executions"]:
                sequences.append(execution["sequence"])
                assert f"#{execution['sequence']} exit code 0" in text(result)
                if (output := execution.get("output")) and output["truncated"]:
                    number = execution["sequence"]
                    assert f"call again with after_sequence {number - 1} and limit 1" in text(
                        result
                    )
            after = page.get("next_after_sequence")
            pages += 1
            if after is not None:
                assert f"call again with after_sequence {after}" in text(result)
        assert sequences == list(range(1, 10_001))
        assert pages < 200
        default = await assistant.ask("session_list_executions", session_id=session_id)
        assert len(default["executions"]) == 100


async def test_whatever_one_execution_holds_fits_a_result(client: Client) -> None:
    session_id = await running_session(client)
    nasty = '\x01\n"\\😀' * 12_000
    await record(
        client,
        session_id,
        command=nasty[:65_000],
        output=Output(text="\x01\n" * 200_000),
        error_output=Output(binary=b"\xff" * 100_000),
        step="\x01" * 200,
        capability="x" * 64,
    )
    async with over_stdio(client.address, "--tools", "all") as assistant:
        for limit in (1, 100):
            result = await assistant.call(
                "session_list_executions", session_id=session_id, limit=limit
            )
            assert not result.is_error
            assert characters(result) <= 60_000
            [execution] = result.structured_content["executions"]
            assert execution["command_truncated"]
            assert execution["output"]["truncated"]
            assert execution["output"]["size_bytes"] == 400_000
            assert execution["error_output"]["binary"]
            assert "\x01" not in text(result)
            assert ("execution_read_output with sequence 1" in text(result)) == (limit == 1)

        for stream, whole in (("output", "\x01\n" * 200_000), ("error_output", "\\xff" * 100_000)):
            read, offset = "", 0
            while True:
                result = await assistant.call(
                    "execution_read_output",
                    session_id=session_id,
                    sequence=1,
                    stream=stream,
                    offset=offset,
                )
                assert not result.is_error, text(result)
                assert characters(result) <= 60_000
                part = result.structured_content
                read += part["text"]
                if "next_offset" not in part:
                    break
                offset = part["next_offset"]
            assert read == whole


async def test_a_multi_byte_output_is_read_without_a_broken_character(client: Client) -> None:
    session_id = await running_session(client)
    whole = "a" + "é😀" * 40_000
    await record(client, session_id, output=Output(text=whole))
    async with over_stdio(client.address, "--tools", "all") as assistant:
        read = ""
        offset: int | None = 0
        while offset is not None:
            part = await assistant.ask(
                "execution_read_output", session_id=session_id, sequence=1, offset=offset
            )
            assert "binary" not in part
            read += part["text"]
            offset = part.get("next_offset")
        assert read == whole


async def test_long_lists_and_long_texts_fit(client: Client, database_url: str) -> None:
    summary = "\x01" * 65_000
    for number in range(80):
        await register_agent(client, f"ag_{number}", hostname="h" * 253)
        session = await start_session(
            client, f"ag_{number}", playbook="\x01" * 200, description="\x02" * 4096
        )
        if number % 2:
            await submit(client, session.session_id, summary=summary)
        elif number % 4:
            await client.sessions.FailSession(
                FailSessionRequest(session_id=session.session_id, reason="\x03" * 4096)
            )
    async with over_stdio(client.address) as assistant:
        for number in (1, 2):
            listed = await assistant.ask("session_list", agent_id=f"ag_{number}")
            session_id = listed["sessions"][0]["session_id"]
            result = await assistant.call("session_get", session_id=session_id)
            assert not result.is_error
            assert characters(result) <= 60_000
            assert "description" in result.structured_content["cut_short"]
            assert "\x01" not in text(result)
        seen: list[str] = []
        offset: int | None = 0
        while offset is not None:
            result = await assistant.call("session_list", limit=200, offset=offset)
            assert characters(result) <= 60_000
            page = result.structured_content
            assert page["total_size"] == 80
            assert 0 < len(page["sessions"]) < 80
            seen += [row["session_id"] for row in page["sessions"]]
            offset = page.get("next_offset")
        assert len(seen) == len(set(seen)) == 80


# What is shown.


async def test_filters_and_pages_of_sessions(client: Client, clock: FrozenClock) -> None:
    for number in range(25):
        clock.advance(1)
        await running_session(client, f"ag_{number}", playbook=f"p{number % 2}")
    async with over_stdio(client.address) as assistant:

        async def agents(**filters: Any) -> list[str]:
            page = await assistant.ask("session_list", **filters)
            return [row["agent_id"] for row in page["sessions"]]

        newest = [f"ag_{number}" for number in range(24, -1, -1)]
        assert await agents() == newest[:20]
        assert await agents(limit=0) == newest[:20]
        assert await agents(limit=3, offset=2) == newest[2:5]
        assert await agents(limit=1000) == newest
        assert await agents(agent_id="ag_7") == ["ag_7"]
        assert await agents(hostname="WEB-1", playbook="p1", limit=2) == ["ag_23", "ag_21"]
        assert await agents(status="completed") == []
        # As models send what they leave out.
        assert await agents(agent_id=None, hostname="", status="", limit=2.0) == newest[:2]
        page = await assistant.call("session_list")
        assert page.structured_content["next_offset"] == 20
        assert "Sessions 1 to 20 of 25, most recent first." in text(page)
        assert "call again with offset 20" in text(page)
        nothing = await assistant.call("session_list", status="failed")
        assert text(nothing) == "No session matches."


async def test_a_list_never_names_an_offset_that_is_refused(sqlite_url: str) -> None:
    database = sa.make_url(sqlite_url).database
    assert database is not None
    fill(Path(database), 10_030, in_session=1)
    async with serving(sqlite_url) as client, over_stdio(client.address) as assistant:
        page = await assistant.call("session_list", offset=9980)
        assert page.structured_content["next_offset"] == 10_000
        for offset in (9981, 10_000):
            page = await assistant.call("session_list", offset=offset)
            assert len(page.structured_content["sessions"]) == 20
            assert "next_offset" not in page.structured_content
            assert "call again" not in text(page)
            assert "There are more, beyond any offset: narrow the filters" in text(page)


async def test_how_every_end_of_a_session_is_shown(
    client: Client, database_url: str, clock: FrozenClock
) -> None:
    done = await running_session(client, "ag_1")
    await client.recording.BeginExecution(
        BeginExecutionRequest(
            session_id=done, command="tail -f x", capability="shell", start_time=at(0)
        )
    )
    await submit(client, done, summary="Two findings.")
    await complete(database_url, done, comment="Agreed.")
    broken = await running_session(client, "ag_2")
    await client.sessions.FailSession(FailSessionRequest(session_id=broken, reason="agent lost"))
    stopped = await running_session(client, "ag_3")
    await client.sessions.InterruptSession(
        InterruptSessionRequest(session_id=stopped, reason="by hand")
    )
    async with over_stdio(client.address) as assistant:
        completed = await assistant.call("session_get", session_id=done)
        assert completed.structured_content["review"] == {
            "by": "human ada",
            "comment": "Agreed.",
            "time": "2026-01-31T12:00:00Z",
        }
        assert "Reviewed by human ada: Agreed." in text(completed)
        failed = await assistant.ask("session_get", session_id=broken)
        assert (failed["status"], failed["status_reason"]) == ("failed", "agent lost")
        assert (await assistant.ask("session_list", status="interrupted"))["sessions"][0][
            "session_id"
        ] == stopped
        [left] = (await assistant.ask("session_list_executions", session_id=done))["executions"]
        assert left["state"] == "unfinished"
        assert "exit_code" not in left


# Writes.


async def test_every_write_carries_a_request_id_and_every_call_a_deadline() -> None:
    async with (
        scripted(refusing(grpc.StatusCode.INTERNAL, "INTERNAL_ERROR", None, "x")) as script,
        over_stdio(script.address) as assistant,
    ):
        await assistant.refused("session_start", agent_id="a", playbook="p")
        await assistant.refused("session_submit", session_id="s", summary="x")
        started, submitted = (request for _, request, _ in script.calls)
        ids = {
            StartSessionRequest.FromString(started).request_id,
            SubmitSessionRequest.FromString(submitted).request_id,
        }
        assert len(ids) == 2
        assert all(len(each) == 36 for each in ids)
