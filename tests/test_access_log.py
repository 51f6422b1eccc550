"""The access log: who read or changed which session, by which proof, with which result."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from callers import HUMAN, SERVICE, bearer, calling, complete_session, make_token
from harness import (
    NO_SESSION,
    Client,
    collect,
    failed,
    get_session,
    list_executions,
    record,
    record_request,
    register_agent,
    running_session,
    serving,
    settings_for,
    start_session,
    submit,
)
from infrascout.sessions.v1 import agent_service_pb2 as agents_pb
from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout_sessions.interceptors.access_log import AccessLogError
from infrascout_sessions.models import Role
from infrascout_sessions.server import running


def _lines(path: Path, rpc: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["method"].endswith(rpc)]


async def test_a_line_for_each_call(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    token = await make_token(database_url, "ada", HUMAN, Role.REVIEWER, Role.VIEWER)
    async with serving(database_url, access_log=str(log)) as client:
        await register_agent(client)
        session_id = (await start_session(client)).session_id
        await record(client, session_id, output={"text": "evidence"}, command="whoami")
        await failed(get_session(client, NO_SESSION))
        await submit(client, session_id)
        async with calling(client.address, token) as ada:
            await list_executions(ada, session_id)
            await complete_session(ada, session_id)
            await failed(record(ada, session_id))
        await failed(get_session_as(client, session_id, "bad"))
    assert log.stat().st_mode & 0o777 == 0o600
    shown = [
        (
            line["subject"],
            line["proof"],
            line["method"].rpartition("/")[2],
            line["result"],
            line.get("reason"),
            line.get("session_id", line.get("agent_id")),
        )
        for line in _lines(log)
    ]
    assert shown == [
        ("local", "none", "RegisterAgent", "OK", None, "ag_1"),
        # The id of a session that is started is known by the answer.
        ("local", "none", "StartSession", "OK", None, session_id),
        ("local", "none", "RecordExecution", "OK", None, session_id),
        ("local", "none", "GetSession", "NOT_FOUND", "SESSION_NOT_FOUND", NO_SESSION),
        ("local", "none", "SubmitSession", "OK", None, session_id),
        ("ada", "token", "ListExecutions", None, None, session_id),
        ("ada", "token", "ListExecutions", "OK", None, session_id),
        ("ada", "token", "CompleteSession", "OK", None, session_id),
        # Nothing of a request is read before its caller may call.
        ("ada", "token", "RecordExecution", "PERMISSION_DENIED", "ROLE_MISSING", None),
        (None, None, "GetSession", "UNAUTHENTICATED", "PROOF_MISSING_OR_INVALID", None),
    ]
    for line in _lines(log):
        assert line["event"] == "access"
        assert line["time"].endswith("Z")
        assert line["peer"].startswith("ipv4:127.0.0.1:")
    content = log.read_text()
    for secret in ("evidence", "whoami", token):
        assert secret not in content


async def get_session_as(client: Client, session_id: str, token: str) -> object:
    """Get a session with another proof."""
    async with calling(client.address, token) as caller:
        return await get_session(caller, session_id)


async def test_a_stream_of_records_names_its_sessions(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    token = await make_token(database_url, "tool", SERVICE, Role.RECORDER)
    async with serving(database_url, access_log=str(log)) as client:
        sessions = [await running_session(client, f"ag_{number}") for number in range(130)]

        async def requests() -> Any:
            for at in range(0, 130, 13):
                yield pb.RecordExecutionsRequest(
                    executions=[record_request(each) for each in sessions[at : at + 13] * 2]
                )

        async with calling(client.address, token) as tool:
            await collect(tool.recording.RecordExecutions(requests()))
    lines = _lines(log, "/RecordExecutions")
    assert [line["result"] for line in lines] == [None, "OK"]
    named = [session_id for line in lines for session_id in line["session_ids"]]
    assert sorted(named) == sorted(sessions)
    assert {line["subject"] for line in lines} == {"tool"}


async def test_what_has_not_the_form_of_an_id_is_in_no_log(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    async with serving(database_url, access_log=str(log)) as client:
        session_id = await running_session(client)
        with capture_logs() as said:
            for no_id in ("mysql -p s3cret", "s3cret" * 100_000):

                async def requests(no_id: str = no_id) -> Any:
                    yield pb.RecordExecutionsRequest(
                        executions=[record_request(each) for each in (session_id, no_id)]
                    )

                assert (await failed(register_agent(client, no_id))).code() is _INVALID
                assert (await failed(get_session(client, no_id))).code() is _INVALID
                assert (await failed(list_executions(client, no_id))).code() is _INVALID
                await collect(client.recording.RecordExecutions(requests()))
            # The last line is written once its call is answered.
            await get_session(client, session_id)
    assert "s3cret" not in log.read_text()
    assert "s3cret" not in json.dumps(said, default=str)
    assert len(said) >= 8
    assert [line["session_ids"] for line in _lines(log, "/RecordExecutions") if line["result"]] == [
        [session_id]
    ] * 2


_INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def test_a_file_that_is_moved_away_is_made_anew(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    monkeypatch.setattr("infrascout_sessions.interceptors.access_log._LOOK_INTERVAL_SECONDS", 0)
    async with serving(database_url, access_log=str(log)) as client:
        await register_agent(client, "ag_before")
        log.rename(moved)
        await register_agent(client, "ag_after")
    assert [line["agent_id"] for line in _lines(moved)] == ["ag_before"]
    assert [line["agent_id"] for line in _lines(log)] == ["ag_after"]


async def test_a_folder_that_is_away_for_a_moment_costs_no_line(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "logs", tmp_path / "away"
    folder.mkdir()
    log = folder / "access.log"
    monkeypatch.setattr("infrascout_sessions.interceptors.access_log._LOOK_INTERVAL_SECONDS", 0)
    async with serving(database_url, access_log=str(log)) as client:
        for turn in range(2):
            with capture_logs() as said:
                folder.rename(away)
                for number in range(3):
                    await register_agent(client, f"ag_{turn}_away{number}")
                away.rename(folder)
                await register_agent(client, f"ag_{turn}_back")
            # Once, and not with every look.
            assert [line["cause"] for line in said if line["log_level"] == "error"] == [
                f"[Errno 2] No such file or directory: '{log}'"
            ]
        # Another folder of the name, in the end: what was open has gone with the first one.
        folder.rename(away)
        await register_agent(client, "ag_late")
        folder.mkdir()
        await register_agent(client, "ag_anew")
    expected = [f"ag_{turn}_{at}" for turn in (0, 1) for at in ("away0", "away1", "away2", "back")]
    assert [line["agent_id"] for line in _lines(away / log.name)] == [*expected, "ag_late"]
    assert [line["agent_id"] for line in _lines(log)] == ["ag_anew"]


async def test_a_flood_of_bad_proofs_is_sampled(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with serving(database_url, access_log=str(log), maximum_failed_proofs=10_000) as client:
        request = agents_pb.ListAgentsRequest()
        for _ in range(12):
            async with calling(client.address) as caller:
                for _ in range(10):
                    error = await failed(caller.agents.ListAgents(request, metadata=bearer("bad")))
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    lines = _lines(log)
    seconds = {line["time"][:19] for line in lines}
    assert len(lines) <= 10 * (len(seconds) + 1) < 120


async def test_a_log_that_cannot_be_written_is_not_served(
    database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "missing" / "access.log"
    with pytest.raises(AccessLogError, match="access"):
        async with running(settings_for(database_url, access_log=str(path))):
            pass
