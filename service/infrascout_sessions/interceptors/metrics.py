"""What Prometheus is told of the RPCs.

Counted in plain numbers and told when asked: the library's own counters take a lock for each bucket
and cost more than the rest of a call's account.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class MethodMetrics:
    """The account of one method; used by the event loop's thread alone."""

    __slots__ = ("buckets", "codes", "seconds")

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.buckets = [0] * (len(_BOUNDS_SECONDS) + 1)
        self.seconds = 0.0

    def count(self, code: str, seconds: float) -> None:
        """One more RPC has ended."""
        self.codes[code] += 1
        self.buckets[bisect_left(_BOUNDS_SECONDS, seconds)] += 1
        self.seconds += seconds


_METHODS: Final[dict[str, MethodMetrics]] = {}


def of_method(path: str) -> MethodMetrics:
    """The account of the method with this path, of all servers in this process."""
    return _METHODS.setdefault(path, MethodMetrics())


class _RpcCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        """The accounts as Prometheus takes them."""
        rpcs = CounterMetricFamily(
            "infrascout_sessions_rpcs", "RPCs answered.", labels=("method", "code")
        )
        seconds = HistogramMetricFamily(
            "infrascout_sessions_rpc_seconds", "How long RPCs took.", labels=("method",)
        )
        for path, metrics in list(_METHODS.items()):
            for code, count in list(metrics.codes.items()):
                rpcs.add_metric((path, code), count)
            total, buckets = 0, []
            for bound, count in zip((*_BOUNDS_SECONDS, "+Inf"), metrics.buckets, strict=True):
                total += count
                buckets.append((str(bound), float(total)))
            seconds.add_metric((path,), buckets, metrics.seconds)
        yield rpcs
        yield seconds


REGISTRY.register(_RpcCollector())
