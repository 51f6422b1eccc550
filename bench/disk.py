"""What the disk and SQLite alone cost, as ceilings for durable writes."""

import os
import sqlite3
import statistics
import time
from pathlib import Path

from bench import samples

# One table and the one index that the order needs. WITHOUT ROWID was half as fast at fifty rows.
SCHEMA = """
CREATE TABLE executions (
  session_id TEXT NOT NULL, sequence INTEGER NOT NULL, execution_id TEXT NOT NULL,
  command TEXT NOT NULL, capability TEXT NOT NULL, output BLOB NOT NULL, exit_code INTEGER,
  start_time INTEGER NOT NULL, end_time INTEGER NOT NULL, record_time INTEGER NOT NULL,
  actor TEXT NOT NULL, request_id TEXT NOT NULL,
  UNIQUE (session_id, sequence)
)
"""
INSERT = "INSERT INTO executions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def fsync_microseconds(folder: Path, times: int = 200) -> float:
    """The median cost of one appended and fsynced 4 KiB."""
    costs = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(times):
            start = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            costs.append(time.perf_counter() - start)
    return statistics.median(costs) * 1e6


def sqlite_rows_per_second(file: Path, rows: int, seconds: float) -> float:
    """Executions in a flat table, committed `rows` at a time as durably as the service does."""
    database = sqlite3.connect(file, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(SCHEMA)
        output = samples.OUTPUT.encode()
        session_id = samples.session_id(0)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            group = [
                (
                    *(session_id, n, samples.execution_id(n), samples.COMMAND),
                    *(samples.CAPABILITY, output, 0, samples.TIME_SECONDS, samples.TIME_SECONDS),
                    *(samples.TIME_SECONDS, "local", samples.request_id("raw", n)),
                )
                for n in range(done + 1, done + 1 + rows)
            ]
            database.execute("BEGIN IMMEDIATE")
            database.executemany(INSERT, group)
            database.execute("COMMIT")
            done += rows
        return done / (time.perf_counter() - start)
    finally:
        database.close()
