"""The metrics of the service for Prometheus; none is about a single customer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spotledger.ops.siblings import Siblings
from spotledger.security.gate import SharedCountsState

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics(Collector):
    """
    The metrics of one running service, in a registry of their own.

    Args:
        siblings: The workers of which this process is one; then the metrics of each are shown, labelled ``worker``.
    """

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._registry = self._shown = CollectorRegistry()
        self._counts: dict[tuple[str, str, int], int] = {}
        self._families: list[Callable[[], Metric]] = []
        self._registry.register(self)
        if siblings is not None:
            self._shown = CollectorRegistry()
            self._shown.register(_OfAllWorkers(siblings, self._as_json))
            siblings.publish_metrics(self._as_json)

    def show(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show the number that *value* returns at each scrape, as the gauge ``spotledger_<name>``."""
        self._families.append(lambda: GaugeMetricFamily(f"spotledger_{name}", meaning, value()))

    def show_total(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show a number that only grows, as the counter ``spotledger_<name>_total``."""
        self._families.append(lambda: CounterMetricFamily(f"spotledger_{name}", meaning, value()))

    def show_totals(self, name: str, meaning: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Show numbers that only grow, one per value of *label*, as the counter ``spotledger_<name>_total``."""

        def family() -> Metric:
            found = CounterMetricFamily(f"spotledger_{name}", meaning, labels=[label])
            for value, count in values().items():
                found.add_metric([value], count)
            return found

        self._families.append(family)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics of this process as they are now."""
        return [self._requests(), *(family() for family in self._families)]

    def count(self, method: str, path: str, status: int) -> None:
        """Count one answered call; *path* is that of a route, with the names of its parameters."""
        counted = (method, path, status)
        self._counts[counted] = self._counts.get(counted, 0) + 1

    def _requests(self) -> Metric:
        found = CounterMetricFamily(
            "spotledger_operator_requests",
            "Calls of the operator API that were answered.",
            labels=["method", "path", "status"],
        )
        for (method, path, status), count in self._counts.items():
            found.add_metric([method, path, str(status)], count)
        return found

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._shown)

    def _as_json(self) -> list[Any]:
        """Return all metrics of this process as values that JSON can represent."""
        return [
            [family.name, family.documentation, family.type, [sample[:3] for sample in family.samples]]
            for family in self._registry.collect()
        ]


class _OfAllWorkers(Collector):
    """The metrics of all workers, each labelled with the number of its worker."""

    def __init__(self, siblings: Siblings, own: Callable[[], list[Any]]) -> None:
        self._siblings = siblings
        self._own = own

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the metrics are not known before they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this worker as they are now, and those of the others as last published."""
        published = {**self._siblings.metrics(), self._siblings.number: self._own()}
        joined: dict[str, Metric] = {}
        for number in sorted(published):
            for name, meaning, kind, samples in published[number]:
                family = joined.setdefault(name, Metric(name, meaning, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, "worker": str(number)}, value)
        yield from joined.values()
        meaning = "1 if the worker published its metrics in the last seconds, else 0."
        up = GaugeMetricFamily("spotledger_worker_up", meaning, labels=["worker"])
        for number in range(self._siblings.workers):
            up.add_metric([str(number)], int(number in published))
        yield up


def show_shared_counts(metrics: Metrics, counts: SharedCountsState) -> None:
    """Show the state of the Redis server in which all nodes count requests."""
    metrics.show("redis_up", "1 while Redis answers, else 0.", lambda: int(counts.is_up))
    metrics.show_total("redis_failures", "How often Redis stopped answering.", lambda: counts.failures)
    metrics.show_total("redis_unshared_requests", "Requests of traders decided without Redis.", lambda: counts.unshared)
