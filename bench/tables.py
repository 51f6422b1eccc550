"""The tables of growth, long sessions and followers."""

from typing import Any

from bench.report import table


def growth(result: dict[str, Any]) -> str:
    sizes = [str(size) for size in result["sizes"]]
    sql = result.get("sql", {})
    head = ["p50 in ms over so many sessions", *(f"{int(size):,}" for size in sizes), "growth"]
    if sql:
        head += [f"µs in SQL, {int(sizes[0]):,}", f"{int(sizes[-1]):,}", "index at 1,000,000"]

    def row(name: str, of: dict[str, Any]) -> list[str]:
        p50 = of["p50_us"]
        cells = [name, *(f"{p50[size] / 1000:.2f}" for size in sizes)]
        cells.append(f"{p50[sizes[-1]] / p50[sizes[0]]:.2f}")
        if sql:
            last = sql[sizes[-1]][name]
            cells += [f"{sql[sizes[0]][name]['p50_us']:.0f}", f"{last['p50_us']:.0f}"]
            cells.append(index(last["plans"]))
        return cells

    return table(head, (row(name, of) for name, of in result["rows"].items()))


def index(plans: list[str]) -> str:
    """What the plan of a query reads; the whole plan is in results.json."""
    for plan in plans:
        for kind in ("COVERING INDEX ", "INDEX "):
            if plan.partition(" ")[2].startswith("sessions USING") and kind in plan:
                return plan.partition(kind)[2].partition(" ")[0]
    return "primary keys"


def long_sessions(result: dict[str, Any]) -> str:
    sizes = list(result["first_message_ms"])
    first, record = result["first_message_ms"], result["record_p50_us"]
    rows = [
        ["first message of ListExecutions, ms", *(f"{first[size]:.2f}" for size in sizes)],
        ["RecordExecution, p50 ms", *(f"{record[size] / 1000:.2f}" for size in sizes)],
    ]
    stream = result["stream"]
    rate = 1_000_000 / stream["seconds"]
    return (
        table(["executions in the session", *(f"{int(size):,}" for size in sizes)], rows)
        + f"\n\nStreaming all 1,000,000 ({stream['bytes'] / 1e9:.2f} GB in"
        f" {stream['messages']:,} messages) took {stream['seconds']:.1f} s"
        f" ({rate:,.0f} executions/s); the server's memory grew by"
        f" {stream['memory_grew'] / 1e6:.0f} MB at most, from {stream['memory_before'] / 1e6:.0f}."
    )


def followers(result: list[dict[str, Any]]) -> str:
    head = [
        *("followers", "of them stalled", "records/s meanwhile", "deliveries", "seconds"),
        *("deliveries/s", "messages", "server CPU s", "µs a delivery", "memory MB", "wrong"),
    ]
    rows = []
    for run in result:
        cells = [f"{run['followers']:,}", str(run["stalled"]), f"{run['recorded_per_second']:,.0f}"]
        if run["followers"]:
            cpu = run["server_cpu_seconds"]
            cells += [
                f"{run['deliveries']:,}",
                f"{run['seconds']:.1f}",
                f"{run['deliveries'] / run['seconds']:,.0f}",
                f"{run['messages']:,}",
                f"{cpu:.1f}",
                f"{cpu * 1e6 / run['deliveries']:.1f}",
                f"{run['server_memory_grew'] / 1e6:.0f}",
                str(len(run["wrong"])),
            ]
        else:
            cells += ["", "", "", "", f"{run['server_cpu_seconds']:.1f}", "", "", ""]
        rows.append(cells)
    return table(head, rows)
