"""What Prometheus is told: numbers about the service, none about any customer."""

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
    The numbers of one running service, in a registry of their own.

    Args:
        siblings: The workers that this process is one of. Then the numbers of each are shown, labelled ``worker``.
    """

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._registry = self._shown = CollectorRegistry()
        self._counts: dict[tuple[str, str, int], int] = {}
        self._told: list[Callable[[], Metric]] = []
        self._registry.register(self)
        if siblings is not None:
            self._shown = CollectorRegistry()
            self._shown.register(_OfAllWorkers(siblings, self._said))
            siblings.publish_metrics(self._said)

    def show(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show the number that *value* returns whenever it is asked for, as ``spotledger_<name>``."""
        self._told.append(lambda: GaugeMetricFamily(f"spotledger_{name}", meaning, value()))

    def tell(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show a number that only grows, as ``spotledger_<name>_total``."""
        self._told.append(lambda: CounterMetricFamily(f"spotledger_{name}", meaning, value()))

    def tell_by(self, name: str, meaning: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Show numbers that only grow, one for each value of *label*, as ``spotledger_<name>_total``."""

        def family() -> Metric:
            found = CounterMetricFamily(f"spotledger_{name}", meaning, labels=[label])
            for value, count in values().items():
                found.add_metric([value], count)
            return found

        self._told.append(family)

    def collect(self) -> Iterable[Metric]:
        """Return the numbers that are shown and told, as they are now."""
        return [self._requests(), *(family() for family in self._told)]

    def count(self, method: str, path: str, status: int) -> None:
        """Count one answered call; *path* is a path of the API with its parameters' names, never a caller's text."""
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
        """Return all numbers in Prometheus's text form."""
        return generate_latest(self._shown)

    def _said(self) -> list[Any]:
        """Return all numbers of this process in a form that JSON has."""
        return [
            [family.name, family.documentation, family.type, [sample[:3] for sample in family.samples]]
            for family in self._registry.collect()
        ]


class _OfAllWorkers(Collector):
    """The numbers of all workers, each with the number of its worker as a label."""

    def __init__(self, siblings: Siblings, own: Callable[[], list[Any]]) -> None:
        self._siblings = siblings
        self._own = own

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is to show is known when it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the numbers of this worker as they are, and those of the others as they last said them."""
        said = {**self._siblings.metrics(), self._siblings.number: self._own()}
        joined: dict[str, Metric] = {}
        for number in sorted(said):
            for name, meaning, kind, samples in said[number]:
                family = joined.setdefault(name, Metric(name, meaning, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, "worker": str(number)}, value)
        yield from joined.values()
        meaning = "1 where the worker said how it is within the last seconds, else 0."
        up = GaugeMetricFamily("spotledger_worker_up", meaning, labels=["worker"])
        for number in range(self._siblings.workers):
            up.add_metric([str(number)], int(number in said))
        yield up


def show_shared_counts(metrics: Metrics, counts: SharedCountsState) -> None:
    """Show how this node gets on with the Redis in which all nodes count."""
    metrics.show("redis_up", "1 while Redis answers, else 0.", lambda: int(counts.is_up))
    metrics.tell("redis_failures", "How often Redis stopped answering.", lambda: counts.failures)
    metrics.tell("redis_unshared_requests", "Requests of traders decided without Redis.", lambda: counts.unshared)
