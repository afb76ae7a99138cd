"""--estimate: the recipe runs as it is, short, and nothing is kept."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pitstop import plan
from pitstop.clocks import process_age
from pitstop.errors import FINISHED
from pitstop.launcher import is_launcher
from pitstop.plan import Stream
from pitstop.session.estimate import Estimate
from pitstop.session.session import Session


class Rehearsal(Session):
    """A session of a few steps, which are timed; then it says what the whole run would be, and leaves."""

    def restore(self, stream: Stream) -> None:
        self._stream, total = stream, stream.total_steps(self.config.epochs)
        self._shape = self._place.shape(self.config, self._optimizer, self.memory.micro_batch)
        self._room.begin(self._wrapped, self._optimizer, stream, self._shape, 0)
        disk = plan.disk(self._attempt.run.path, self.config.keep, self._state_bytes(), self._model)
        launcher = os.getppid()
        since_command = process_age(launcher if is_launcher(launcher) else "self")
        self._estimate = Estimate(total, self.device, since_command, disk)
        self.total_steps = self._estimate.steps

    def due(self, every_epochs: float) -> bool:
        return self._estimate.wants_evaluation()

    def commit(self, metrics: dict[str, Tensor]) -> None:
        self.step += 1
        self._estimate.stepped()

    def evaluated(self, result: Mapping[str, float]) -> bool:
        self._estimate.evaluated()
        return True

    def finish(
        self, result: Mapping[str, float], card: dict[str, Any], judged: nn.Module | None = None, split: str = ""
    ) -> None:
        self.say(self._estimate.text(self.config, self._stream))
        self._place.part()
        raise SystemExit(FINISHED)
