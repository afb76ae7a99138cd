"""The average of the weights over the last steps, which often classifies better than the weights themselves."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class Ema:
    """timm's ModelEmaV3 as an owner of state: exponential moving average of parameters and statistics of norms.

    In step s the average keeps min(decay, 1 - (1 + s)**(-2/3)) of itself: nothing of the untrained weights is left.
    That is computed from the step, so what is saved is the average alone. Every rank keeps its own; they differ in the
    statistics of batch normalisation, as the models do.

    Args:
        model: bare, with its first weights, on its device.
        decay: share of itself that the average keeps in a step, once there have been many.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9998) -> None:
        self._model = model
        self._average = ModelEmaV3(model, decay=decay, use_warmup=True)
        self._average.requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """A model of its own with the average in it."""
        average: nn.Module = self._average.module
        return average

    def update(self, step: int) -> None:
        """Takes the weights that step number `step` (`session.step` before `commit`) has left; also if fp16 skipped
        its update: it is a step all the same."""
        self._average.update(self._model, step + 1)  # timm counts the steps that are done

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors, by their names in the model."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies into the live tensors. A checkpoint without an average leaves it as it is: that of step 0.

        Raises:
            KeyError, RuntimeError: the state is of another model.
        """
        if not state:
            return
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(state[name])
