"""Which evaluation was the best, the weights it had, and when to stop waiting for a better one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WEIGHTS = "weights/"


class Best:
    """An owner of state: the best value of a metric so far, its step and its weights, and how long ago that was.

    The weights are state, on the CPU: whatever was killed where, `best/` on the disk can be written again, exactly as
    it was, from a checkpoint.

    Attributes:
        metric: its name; of "loss" the lowest value is the best, of all others the highest.
        value: of the best evaluation; None before the first.
        step: of that evaluation; -1 before the first.
        weights: of that evaluation, by name, on the CPU; empty before the first.
    """

    def __init__(self, metric: str, patience: int = 0) -> None:
        self.metric, self.patience = metric, patience
        self._forget()

    def _forget(self) -> None:
        self.value: float | None = None
        self.step = self._last = -1
        self._since = 0  # evaluations that were not better
        self.weights: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """Were `patience` evaluations in a row no better than the best? Never with patience 0."""
        return 0 < self.patience <= self._since

    def look(self, step: int, value: float, weights: Mapping[str, Tensor]) -> bool:
        """Is the evaluation at `step` the best so far? Of two that are alike the earlier stays; NaN is never better.

        The weights of the best are copied. An evaluation that was looked at already counts once.
        """
        if step == self._last:
            return step == self.step
        assert step > self._last, "evaluations come in the order of their steps"
        self._last = step
        if not self._better(value):
            self._since += 1
            return False
        self.value, self.step, self._since = float(value), step, 0
        if self.weights.keys() != weights.keys():
            self.weights = {name: torch.empty(w.shape, dtype=w.dtype) for name, w in weights.items()}
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor.detach())
        return True

    def _better(self, value: float) -> bool:
        if self.value is None:
            return value == value  # no NaN
        return value < self.value if self.metric == "loss" else value > self.value

    def state_dict(self) -> dict[str, Any]:
        numbers = {"metric": self.metric, "value": self.value, "step": self.step}
        numbers |= {"last": self._last, "since": self._since}
        return numbers | {WEIGHTS + name: tensor for name, tensor in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What was chosen by another metric is forgotten: its values do not compare."""
        self._forget()
        if state.get("metric") != self.metric:
            return
        self.value, self.step, self._last, self._since = (state[key] for key in ("value", "step", "last", "since"))
        weights = {name.removeprefix(WEIGHTS): w for name, w in state.items() if name.startswith(WEIGHTS)}
        self.weights = {name: w.detach().cpu().clone() for name, w in weights.items()}
