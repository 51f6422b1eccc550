"""What the demo concludes from the outputs on record: one insight, and the summary."""

import re
from collections.abc import Collection, Mapping
from typing import Final

from infrascout.sessions.v1.execution_pb2 import Execution
from infrascout.sessions.v1.insight_pb2 import SEVERITY_INFO, SEVERITY_LOW
from infrascout.sessions.v1.recording_service_pb2 import SaveInsightRequest

FILESYSTEMS: Final = "3.1 filesystems"
PORTS: Final = "3.2 listening TCP ports"

# What `ss` and `netstat` say of a listening socket: state or protocol, two queues, address, port.
_SOCKET: Final = re.compile(r"(?m)^(?=.*\bLISTEN\b)\S+\s+\d+\s+\d+\s+(\S+)[.:](\d+)\s.*$")
_LOOPBACK: Final = ("127.", "::1", "[::1]", "[::ffff:127.")
# What `df` says of a filesystem: how full it is, and where it is mounted.
_FILESYSTEM: Final = re.compile(r"(?m)^.*?\s(\d+)%.*\s(/\S*)$")

_MAXIMUM_PORTS: Final = 50
_MAXIMUM_EVIDENCE: Final = 4096


def finding(executions: Mapping[str, Execution]) -> SaveInsightRequest:
    """The ports that listen or, on a host that does not tell them, the fullest filesystem."""
    ports, filesystems = executions[PORTS], executions[FILESYSTEMS]
    if succeeded(ports):
        return _listening_ports(ports)
    if succeeded(filesystems) and _FILESYSTEM.search(filesystems.output.text):
        return _fullest_filesystem(filesystems)
    return SaveInsightRequest(
        category="coverage",
        key="host",
        value="Neither the listening ports nor the filesystems of this host could be read.",
        evidence=(ports.error_output.text + filesystems.error_output.text)[:_MAXIMUM_EVIDENCE],
        execution_sequences=[ports.sequence, filesystems.sequence],
    )


def _listening_ports(execution: Execution) -> SaveInsightRequest:
    sockets = list(_SOCKET.finditer(execution.output.text))
    found = sorted({int(each[2]) for each in sockets if not each[1].startswith(_LOOPBACK)})
    insight = SaveInsightRequest(
        category="open_ports",
        key="tcp",
        value=f"No TCP port listens beyond loopback; {len(sockets)} on loopback alone.",
        severity=SEVERITY_INFO,
        evidence="\n".join(each[0].rstrip() for each in sockets)[:_MAXIMUM_EVIDENCE],
        execution_sequences=[execution.sequence],
    )
    if found:
        insight.value = f"TCP ports that listen beyond loopback: {', '.join(map(str, found))}."
        insight.severity = SEVERITY_LOW
        insight.affected_resources.extend(f"tcp/{port}" for port in found[:_MAXIMUM_PORTS])
        insight.remediation_steps.append("Stop what is not needed, or bind it to loopback.")
    return insight


def _fullest_filesystem(execution: Execution) -> SaveInsightRequest:
    line = max(_FILESYSTEM.finditer(execution.output.text), key=lambda each: int(each[1]))
    return SaveInsightRequest(
        category="filesystems",
        key=line[2],
        value=f"The fullest filesystem, {line[2]}, is {line[1]} % full.",
        severity=SEVERITY_INFO,
        evidence=line[0],
        execution_sequences=[execution.sequence],
    )


def summary(executions: Collection[Execution], insight: SaveInsightRequest) -> str:
    """What was accomplished, in a few sentences."""
    failed = [execution.command for execution in executions if not succeeded(execution)]
    outcome = f"These did not succeed: {', '.join(failed)}." if failed else "All succeeded."
    return f"Ran {len(executions)} read-only commands. {outcome} {insight.value}"


def succeeded(execution: Execution) -> bool:
    """Whether the command ended with exit code 0."""
    return execution.HasField("exit_code") and execution.exit_code == 0
