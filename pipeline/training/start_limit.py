"""How long a training may be without workers.

Ray Train's controller, which is a process of its own, imports this file for it: so none of ours that takes seconds.
"""

import time

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
    TrainControllerState,
)

from ..errors import ClusterError

_STARTING = (InitializingState, SchedulingState, ReschedulingState, RestartingState, ResizingState)
"""In which Ray Train's controller has no workers that train."""


class StartLimit(ControllerCallback):
    """Ends a training that has been without room for its workers for too long; Ray Train itself would wait for ever.

    It is not asked while processes that have been given room start: nothing ends one that hangs there.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        """workers: the fewest that the training can do with."""
        self.workers, self.timeout_s = workers, timeout_s
        self.since_s: float | None = None

    def after_controller_state_update(
        self,
        previous_state: TrainControllerState,  # noqa: ARG002  # Ray Train's signature
        current_state: TrainControllerState,
    ) -> None:
        """Called by Ray Train at every turn of its loop. ClusterError where there have been no workers for too long."""
        if not isinstance(current_state, _STARTING):
            self.since_s = None
            return
        self.since_s = self.since_s or time.monotonic()
        if time.monotonic() - self.since_s >= self.timeout_s:
            raise ClusterError(
                f"train: {self.workers} workers have not started for {self.timeout_s:g} s (cluster.timeout_s); has the "
                "cluster lost nodes, or does other work hold them? The same command goes on from the last checkpoint"
            )
