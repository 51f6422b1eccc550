"""How the tools are run: transports, callers, and what is refused before anything is served."""

import asyncio
import signal
import subprocess
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from assistants import at_url, http_process, over_stdio
from harness import CONSOLE_SCRIPT, clean_environment
from infrascout.sessions.v1.session_pb2 import SESSION_STATUS_RUNNING, Session
from infrascout.sessions.v1.session_service_pb2 import GetSessionResponse
from infrascout_sessions.mcp.parameters import ArgumentsError, Parameter, checked
from scripted import answering, refusing, scripted

SESSION = GetSessionResponse(
    session=Session(session_id="sess_1", status=SESSION_STATUS_RUNNING, execution_count=3)
)


def _tokens(script: Any) -> list[str | None]:
    return [metadata.get("authorization") for _, _, metadata in script.calls]


# Identity.


async def test_over_stdio_the_configured_token_is_used() -> None:
    async with scripted(answering(SESSION)) as script:
        async with over_stdio(
            script.address, environment={"INFRASCOUT_TOKEN": "from-env\n"}
        ) as assistant:
            await assistant.ask("session_get", session_id="sess_1")
        async with over_stdio(script.address, "--token", "given") as assistant:
            await assistant.ask("session_get", session_id="sess_1")
        assert _tokens(script) == ["Bearer from-env", "Bearer given"]


async def test_over_http_each_callers_own_token_passes_through() -> None:
    async with scripted(answering(SESSION)) as script, http_process(script.address) as url:
        async with (
            at_url(url, token="ada.1~+/=") as ada,
            at_url(url, token="bob", mode="legacy") as bob,
            at_url(url) as nobody,
        ):
            for caller in (ada, bob, nobody, ada):
                await caller.ask("session_get", session_id="sess_1")
        assert _tokens(script) == ["Bearer ada.1~+/=", "Bearer bob", None, "Bearer ada.1~+/="]


async def test_a_caller_who_is_not_accepted_is_told_so() -> None:
    step = refusing(grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID", None, "no proof")
    async with (
        scripted(step) as script,
        http_process(script.address) as url,
        at_url(url, token="old") as caller,
    ):
        refusal = await caller.refused("session_list")
        assert "Reason: PROOF_MISSING_OR_INVALID" in refusal
        assert "Authorization header" in refusal


def _post(url: str, *headers: tuple[str, str], host: str = "") -> httpx2.Response:
    """A tool call as a stranger would send it."""
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "session_get", "arguments": {"session_id": "sess_1"}},
    }
    fixed = [("Accept", "application/json, text/event-stream")]
    if host:
        fixed.append(("Host", host))
    with httpx2.Client(trust_env=False, timeout=30) as http:
        return http.post(url, json=call, headers=[*fixed, *headers])


async def test_what_is_no_single_bearer_token_is_refused_and_nobody_called() -> None:
    async with scripted(answering(SESSION)) as script, http_process(script.address) as url:
        for headers in (
            [("Authorization", "Basic YWRhOnNlY3JldA==")],
            [("Authorization", "Bearer")],
            [("Authorization", "Bearer two words")],
            [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
        ):
            answer = await asyncio.to_thread(_post, url, *headers)
            result = answer.json()["result"]
            assert result["isError"]
            assert "is not one bearer token" in result["content"][0]["text"]
        assert script.calls == []


async def test_a_callers_token_does_not_leave_the_machine_in_the_clear() -> None:
    # An address that is nobody's.
    async with http_process("192.0.2.1:50051", "--deadline", "1") as url:
        async with at_url(url, token="secret") as caller:
            refusal = await caller.refused("session_list")
            assert "would travel to the session service unencrypted" in refusal
            assert "192.0.2.1" not in refusal
        async with at_url(url) as nobody:
            refusal = await nobody.refused("session_list")
            assert refusal.startswith("the session service ")
            assert "unencrypted" not in refusal


# Who may talk to it.


async def test_other_hosts_and_origins_are_refused() -> None:
    async with (
        scripted(answering(SESSION)) as script,
        http_process(
            script.address,
            *("--allowed-host", "tools.example.com", "--allowed-origin", "https://chat.example"),
        ) as url,
    ):
        port = url.split(":")[2].partition("/")[0]
        cases: list[tuple[str, str, int]] = [
            ("", "", 200),
            (f"localhost:{port}", "", 200),
            ("tools.example.com", "", 200),
            ("tools.example.com:8443", "", 200),
            ("", f"http://localhost:{port}", 200),
            ("", "https://chat.example", 200),
            ("evil.example", "", 421),
            (f"evil.example:{port}", "", 421),
            ("localhost.evil.example:80", "", 421),
            ("", "https://evil.example", 403),
            ("", "https://chat.example.evil.example", 403),
            ("", "null", 403),
        ]
        for host, origin, status in cases:
            headers = [("Origin", origin)] if origin else []
            answer = await asyncio.to_thread(_post, url, *headers, host=host)
            assert answer.status_code == status, (host, origin, answer.text)
        assert len(script.calls) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--http", "0.0.0.0:0"), "say --allow-remote"),
        (("--http", "192.0.2.1:0"), "say --allow-remote"),
        (("--http", "0.0.0.0:0", "--allow-remote"), "needs --allowed-host"),
        (("--http", "nowhere"), "is no address"),
        (("--http", "127.0.0.1:0", "--token", "t"), "a token is for stdio"),
        (("--address", "nowhere"), "'nowhere' is no address"),
        (("--address", "sessions.example.com:443", "--token", "t"), "unencrypted"),
        (("--token", "two words"), "the token is none"),
        (("--tls-roots", "/nowhere.pem"), "cannot read /nowhere.pem"),
    ],
)
def test_what_it_refuses_to_serve(arguments: tuple[str, ...], said: str) -> None:
    done = _run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("infrascout-sessions: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CONSOLE_SCRIPT), "mcp", *arguments],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_a_port_that_is_taken() -> None:
    async with http_process("127.0.0.1:1") as url:
        address = url.removeprefix("http://").removesuffix("/mcp")
        done = await asyncio.to_thread(_run, "--http", address)
        assert done.returncode == 1
        assert f"cannot listen on {address}" in done.stderr


def test_over_stdio_it_ends_with_its_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(CONSOLE_SCRIPT), "mcp", "--address", "127.0.0.1:1"],
        input='{"jsonrpc": "2.0", "id": 1, "method": "ping"}\nno json\n',
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert '"id":1' in done.stdout
    assert all(line.startswith("{") for line in done.stdout.splitlines())


def test_over_stdio_it_ends_when_interrupted() -> None:
    with subprocess.Popen(
        [str(CONSOLE_SCRIPT), "mcp", "--address", "127.0.0.1:1"],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        process.stdin.flush()
        assert '"id":1' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


# Arguments that the SDK's own client cannot send.


def test_arguments() -> None:
    parameters = (
        Parameter("text", "", required=True),
        Parameter("choice", "", choices=("a", "b"), default="a"),
        Parameter("time", "", kind="time"),
        Parameter("items", "", kind="strings"),
        Parameter("numbers", "", kind="integers"),
    )
    assert checked(parameters, {"text": "", "choice": "", "time": "", "items": None}) == {
        "text": "",
        "choice": "a",
    }
    with pytest.raises(ArgumentsError) as caught:
        checked(parameters, {"text": "\ud800", "items": [1], "numbers": [0], "more": 1})
    assert dict(caught.value.violations) == {
        "text": "is not valid Unicode: it holds a lone surrogate",
        "items": "must be a string",
        "numbers": "is 0: it must be from 1 to 2,147,483,647",
        "more": "is not a parameter of this tool",
    }
