"""What shall happen after this step, for all ranks alike: a stop, a save, or nothing."""

from collections.abc import Mapping

from torch import Tensor

from pitstop.config import RecipeConfig
from pitstop.errors import PERSON_DECIDES
from pitstop.health import Health
from pitstop.session.pace import Pace
from pitstop.session.place import Place
from pitstop.session.saver import Saver
from pitstop.stopper import Stopper


class Wishes:
    """Whoever may want something is asked; the ranks agree at steps that all know beforehand (see `Pace`)."""

    def __init__(self, config: RecipeConfig, place: Place, stopper: Stopper, saver: Saver) -> None:
        self._config, self._place, self._stopper, self._saver = config, place, stopper, saver
        self._pace = Pace(place.world, place.device)
        self._health = Health()

    def step(self, metrics: Mapping[str, Tensor]) -> None:
        """A step is done; its metrics are scalars on the device, and not read. The loss says whether it is ill; a
        recipe that has none by this name is judged by all that it reports."""
        watched = [metrics["loss"]] if "loss" in metrics else metrics.values()
        self._health.add(watched, self._place.precision.overflow)

    def after(self, step: int, step_seconds: float) -> tuple[int, bool]:
        """(exit code of a stop or 0, save now), the same on all ranks."""
        if not self._pace.due(step):
            return 0, False
        config, precision = self._config, self._place.precision.name
        if self._pace.may_read() and (why := self._health.complaint(precision, config.clip_grad_norm)):
            self._stopper.request(f"{why}. Of the checkpoints, {self._saver.last_good}", PERSON_DECIDES)
        by_clock = self._stopper.save_soon or (self._place.rank == 0 and self._saver.due_now())
        stop, save = self._pace.agree(step, [self._stopper.look(), by_clock], step_seconds)
        return int(stop), bool(save)

    def stop(self) -> int:
        """The exit code of a stop in the middle of something, on all ranks at the same place; 0: go on."""
        return int(self._pace.most(self._stopper.look()))

    def code(self, code: int) -> int:
        """That with which all ranks leave: a person's wish outweighs a machine's."""
        return int(self._pace.most(max(code, self._stopper.exit_code)))
