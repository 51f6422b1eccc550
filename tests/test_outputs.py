from hashlib import sha256

import pytest

from harness import Client, list_executions, record, running_session
from infrascout.sessions.v1 import execution_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb

MIB = 1024 * 1024
Output = execution_pb2.Output
Content = str | bytes | None


def content(output: execution_pb2.Output) -> Content:
    kind = output.WhichOneof("content")
    return None if kind is None else output.text if kind == "text" else output.binary


def sent_as(what: str | bytes) -> execution_pb2.Output:
    return Output(text=what) if isinstance(what, str) else Output(binary=what)


def bytes_of(what: str | bytes) -> bytes:
    return what.encode() if isinstance(what, str) else what


WHOLE: dict[str, tuple[str | bytes, str | bytes]] = {
    "text": ("eth0: UP\n", "eth0: UP\n"),
    "empty text": ("", ""),
    "empty binary": (b"", ""),
    "text in binary": (b"caf\xc3\xa9", "café"),
    "text with NUL": ("a\0b\0", "a\0b\0"),
    "NUL in binary": (b"\0", "\0"),
    "control characters": ("\x1b[31mred\x1b[0m\r\n\x7f\ufeff", "\x1b[31mred\x1b[0m\r\n\x7f\ufeff"),
    "four-byte characters": ("𝄞" * 3, "𝄞" * 3),
    "the last code point": ("\U0010ffff", "\U0010ffff"),
    "no UTF-8": (b"\xff\xfe\0\x01", b"\xff\xfe\0\x01"),
    "UTF-8 cut short": (b"ab\xe2\x82", b"ab\xe2\x82"),
    "a surrogate": (b"\xed\xa0\x80", b"\xed\xa0\x80"),
    "an overlong form": (b"\xc0\x80", b"\xc0\x80"),
    "beyond Unicode": (b"\xf4\x90\x80\x80", b"\xf4\x90\x80\x80"),
    "UTF-16": ("hällo".encode("utf-16"), "hällo".encode("utf-16")),
    "every byte": (bytes(range(256)), bytes(range(256))),
    "1 MiB of text": ("x" * MIB, "x" * MIB),
    "1 MiB of bytes": (b"\x80" * MIB, b"\x80" * MIB),
}


@pytest.mark.parametrize("case", WHOLE)
async def test_no_byte_is_lost(client: Client, case: str) -> None:
    sent, read = WHOLE[case]
    session_id = await running_session(client)
    recorded = [
        await record(client, session_id, output=sent_as(sent)),
        await record(client, session_id, error_output=sent_as(sent)),
    ]
    assert await list_executions(client, session_id) == recorded
    expected = sent_as(read)
    expected.size_bytes = len(bytes_of(sent))
    expected.sha256 = sha256(bytes_of(sent)).hexdigest()
    for execution, field, other in zip(
        recorded, ("output", "error_output"), ("error_output", "output"), strict=True
    ):
        assert getattr(execution, field) == expected
        assert not execution.HasField(other)
        request = pb.GetExecutionRequest(session_id=session_id, sequence=execution.sequence)
        assert (await client.sessions.GetExecution(request)).execution == execution


@pytest.mark.parametrize("field", ["output", "error_output"])
async def test_an_output_without_content_is_unset(client: Client, field: str) -> None:
    session_id = await running_session(client)
    recorded = await record(client, session_id, **{field: Output(size_bytes=7, truncated=True)})
    [listed] = await list_executions(client, session_id)
    for execution in (recorded, listed):
        assert not execution.HasField("output")
        assert not execution.HasField("error_output")


async def test_what_a_writer_says_besides_the_content_is_ignored(client: Client) -> None:
    session_id = await running_session(client)
    said = Output(text="ab", size_bytes=-7, truncated=True, sha256="0" * 64)
    recorded = await record(client, session_id, output=said)
    assert recorded.output == Output(text="ab", size_bytes=2, sha256=sha256(b"ab").hexdigest())


async def test_two_outputs_are_kept_apart(client: Client) -> None:
    session_id = await running_session(client)
    await record(client, session_id, output=Output(text="out"), error_output=Output(text="err"))
    await record(client, session_id, output=Output(text=""), error_output=Output(text="err"))
    first, second = await list_executions(client, session_id)
    assert (first.output.text, first.error_output.text) == ("out", "err")
    assert (second.output.WhichOneof("content"), second.output.text) == ("text", "")
    assert second.error_output.text == "err"


# `max_output_bytes`: what is sent, the limit, what is read.
CUT: dict[str, tuple[str | bytes, int, Content]] = {
    "no content": ("abc", 0, None),
    "no content of nothing": ("", 0, None),
    "nothing": ("", 1, ""),
    "the whole": ("abc", 3, "abc"),
    "more than the whole": ("abc", 4, "abc"),
    "far more than the whole": ("abc", 2**63 - 1, "abc"),
    "the head": ("abc", 2, "ab"),
    "the head, NUL included": ("a\0c", 2, "a\0"),
    "two-byte character cut": ("aé", 2, "a"),
    "two-byte character whole": ("aéb", 3, "aé"),
    "three-byte character cut after 1": ("a€b", 2, "a"),
    "three-byte character cut after 2": ("a€b", 3, "a"),
    "three-byte character whole": ("a€b", 4, "a€"),
    "four-byte character cut after 1": ("a𝄞b", 2, "a"),
    "four-byte character cut after 2": ("a𝄞b", 3, "a"),
    "four-byte character cut after 3": ("a𝄞b", 4, "a"),
    "four-byte character whole": ("a𝄞b", 5, "a𝄞"),
    "nothing but a cut character": ("𝄞𝄞", 3, ""),
    "binary": (b"\xff\xfe\xfd", 2, b"\xff\xfe"),
    "binary, whole": (b"\xff\xfe\xfd", 3, b"\xff\xfe\xfd"),
    "binary behind a head that is text": (b"ab\xff", 2, "ab"),
    "binary ahead of text": (b"\xffab", 2, b"\xffa"),
    "a head that ends in a byte that begins no character": (b"ab\xffcd", 3, b"ab\xff"),
    "a head that ends in a stray continuation": (b"ab\x80cd", 3, b"ab\x80"),
    "an end that is no whole character": (b"ab\xe2\x82", 4, b"ab\xe2\x82"),
}


@pytest.mark.parametrize("case", CUT)
async def test_an_output_is_cut_to_max_output_bytes(client: Client, case: str) -> None:
    sent, limit, read = CUT[case]
    session_id = await running_session(client)
    await record(client, session_id, output=sent_as(sent), error_output=sent_as(sent))
    [execution] = await list_executions(client, session_id, max_output_bytes=limit)
    whole = bytes_of(sent)
    for output in (execution.output, execution.error_output):
        assert content(output) == read
        assert type(content(output)) is type(read)
        assert output.size_bytes == len(whole)
        assert output.sha256 == sha256(whole).hexdigest()
        assert output.truncated == (limit < len(whole))


async def test_an_output_that_was_not_captured_stays_unset_whatever_the_limit(
    client: Client,
) -> None:
    session_id = await running_session(client)
    await record(client, session_id)
    for limit in (None, 0, 10):
        [execution] = await list_executions(client, session_id, max_output_bytes=limit)
        assert not execution.HasField("output")
        assert not execution.HasField("error_output")
