"""What Prometheus is told: numbers about the service, none about any customer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spotledger.security.gate import Shared

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics(Collector):
    """The numbers of one running service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counts: dict[tuple[str, str, int], int] = {}
        self._told: list[Callable[[], Metric]] = []
        self._registry.register(self)

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
        return generate_latest(self._registry)


def show_shared_counts(metrics: Metrics, counts: Shared) -> None:
    """Show how this node gets on with the Redis in which all nodes count."""
    metrics.show("redis_up", "1 while Redis answers, else 0.", lambda: int(counts.is_up))
    metrics.tell("redis_failures", "How often Redis stopped answering.", lambda: counts.failures)
    metrics.tell("redis_unshared_requests", "Requests of traders decided without Redis.", lambda: counts.unshared)
