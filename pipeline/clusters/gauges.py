"""What a cluster's Prometheus scrapes of the work that is going on."""

import logging
from collections.abc import Mapping

from ray.util.metrics import Gauge

_logger = logging.getLogger(__name__)


class Gauges:
    """Numbers of one piece of work, each as a gauge `pipeline_WORK_NAME` with these tags, such as `run`.

    Where ray[default] is installed, Ray exports them at the metrics port of the node whose process sets them, as
    `ray_pipeline_WORK_NAME`: while it lives, and for another 20 s after that.
    """

    def __init__(self, work: str, **tags: str) -> None:
        self._work, self._tags = work, tags
        self._gauges: dict[str, Gauge] = {}
        self._broken = False

    def set(self, numbers: Mapping[str, object]) -> None:
        """What is no number is left out. Never raises, and gives up after the first error: a gauge ends no work."""
        if self._broken:
            return
        try:
            for name, value in numbers.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._gauge(name).set(value, self._tags)
        except Exception as error:
            self._broken = True
            _logger.warning("%s goes on without metrics for Prometheus: %s", self._work, error)

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            full = f"pipeline_{self._work}_{name}"
            self._gauges[name] = Gauge(full, f"{name} of {self._work}, the newest", tuple(self._tags))
        return self._gauges[name]
