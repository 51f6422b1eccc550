"""Draws throughput and p99 against callers, for ours and the no-op server, as plain SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from bench.report import call_rate, middle

PANEL_WIDTH, PANEL_HEIGHT = 300, 170
LEFT, TOP, GAP_X, GAP_Y = 64, 64, 84, 66
RPCS = {"GetSession", "RecordExecution"}
SERVERS = {"ours": "InfraScout Sessions", "noop": "grpc.aio server that does nothing"}

# Colours that read on white and on black alike: an image does not know its page's theme.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #7a7a7a }
.title { font-weight: 600; font-size: 13px }
.grid { stroke: #8884; stroke-width: 1 }
.ours { stroke: #d9480f; fill: #d9480f }
.noop { stroke: #3b82c4; fill: #3b82c4 }
polyline { fill: none !important; stroke-width: 2.5 }
polyline.noop { stroke-dasharray: 6 4 }
.value { font-size: 10.5px; stroke: none; text-anchor: middle }
"""


@dataclass(frozen=True)
class Panel:
    title: str
    rows: list[dict[str, Any]]
    value: Callable[[Any], float]
    logarithmic: bool

    def points(self, server: str) -> list[float]:
        return [middle(row["rounds"], server, self.value) for row in self.rows]

    def callers(self) -> list[int]:
        return [row["callers"] for row in self.rows]


def _p99(one: Any) -> float:
    return float(one["load"]["latency_us"]["p99"]) / 1000


def throughput(result: dict[str, Any]) -> str:
    """The chart of a run's unary calls."""
    grid = []
    for rpc in sorted(RPCS):
        rows = sorted((r for r in result["rows"] if r["rpc"] == rpc), key=lambda r: r["callers"])
        grid.append(
            [
                Panel(f"{rpc}: calls a second", rows, call_rate, logarithmic=False),
                Panel(f"{rpc}: p99, ms", rows, _p99, logarithmic=True),
            ]
        )
    width = LEFT + 2 * PANEL_WIDTH + GAP_X + 24
    height = TOP + len(grid) * (PANEL_HEIGHT + GAP_Y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        ' aria-label="Throughput and latency against callers">',
        f"<style>{STYLE}</style>",
        *_legend(),
    ]
    for y, line in enumerate(grid):
        for x, panel in enumerate(line):
            left = LEFT + x * (PANEL_WIDTH + GAP_X)
            parts += _panel(panel, left, TOP + y * (PANEL_HEIGHT + GAP_Y))
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    parts = []
    for index, (server, text) in enumerate(SERVERS.items()):
        x = LEFT + index * 220
        parts.append(f'<polyline class="{server}" points="{x},18 {x + 28},18"/>')
        parts.append(f'<text x="{x + 36}" y="22">{text}</text>')
    return parts


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    everything = [value for server in SERVERS for value in panel.points(server)]
    ticks = _decades(everything) if panel.logarithmic else _steps(max(everything))
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        if panel.logarithmic:
            share = (log10(value) - log10(low)) / (log10(high) - log10(low))
        else:
            share = value / high
        return top + PANEL_HEIGHT * (1 - share)

    def along(index: int) -> float:
        return left + PANEL_WIDTH * (0.06 + 0.88 * index / max(len(panel.rows) - 1, 1))

    parts = [f'<text class="title" x="{left}" y="{top - 12}">{panel.title}</text>']
    for tick in ticks:
        y = place(tick)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>'
        )
    for index, callers in enumerate(panel.callers()):
        text = f"{callers} caller{'s' * (callers > 1)}"
        parts.append(
            f'<text x="{along(index):.1f}" y="{top + PANEL_HEIGHT + 18}" text-anchor="middle">'
            f"{text}</text>"
        )
    for server in SERVERS:
        parts += _line(panel, server, along, place)
    return parts


def _line(
    panel: Panel, server: str, along: Callable[[int], float], place: Callable[[float], float]
) -> list[str]:
    values = panel.points(server)
    others = panel.points("noop" if server == "ours" else "ours")
    points = [(along(index), place(value)) for index, value in enumerate(values)]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline class="{server}" points="{joined}"/>']
    for (x, y), value, other in zip(points, values, others, strict=True):
        # Above the upper line, below the lower one.
        text_y = y - 8 if value >= other else y + 16
        parts.append(
            f'<circle class="{server}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
            f'<text class="value" x="{x:.1f}" y="{text_y:.1f}">{_short(value)}</text>'
        )
    return parts


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _steps(highest: float) -> list[float]:
    """From 0 in round steps to above the highest value."""
    step = 10.0 ** int(log10(highest))
    while highest / step < 3:
        step /= 2
    count = int(highest * 1.08 / step) + 1
    return [step * n for n in range(count + 1)]


def _decades(values: Sequence[float]) -> list[float]:
    """1, 3, 10, 30 … around the values."""
    ticks = [10.0**power * times for power in range(-3, 6) for times in (1, 3)]
    first = max(i for i, tick in enumerate(ticks) if tick <= min(values) / 1.2)
    last = min(i for i, tick in enumerate(ticks) if tick >= max(values) * 1.2)
    return ticks[first : last + 1]
