"""Losses and gradients that are no numbers, counted on the device: nobody waits for it."""

from collections.abc import Iterable

from torch import Tensor

# Steps in a row. fp16 begins with a scale of 2**16 and halves it in each step that overflows: down to 2**-4 before this
# is reached, which no training needs.
LIMIT = 20


class Health:
    """How many steps in a row, up to now, had a loss or a gradient that is infinite or NaN."""

    def __init__(self) -> None:
        self._row: Tensor | None = None  # int64 scalar on the device

    def add(self, metrics: Iterable[Tensor], overflow: Tensor) -> None:
        """One step: its metrics, scalars on the device, and a scalar that is not 0 if its gradient was not finite."""
        signs = overflow.squeeze()
        for metric in metrics:
            signs = signs + metric * 0  # NaN, where the metric is NaN or infinite: few operations, as it is every step
        bad = signs != 0
        self._row = bad.long() if self._row is None else (self._row + 1) * bad

    def in_a_row(self) -> int:
        """Reads the device."""
        return 0 if self._row is None else int(self._row.item())

    def complaint(self, precision: str, clip_grad_norm: float) -> str:
        """Why the run should stop, and what to try; or nothing. Reads the device."""
        steps = self.in_a_row()
        if steps < LIMIT:
            return ""
        clip = "" if clip_grad_norm else "--clip_grad_norm 1, "
        fp32 = "" if precision == "fp32" else ", or --precision fp32"
        return (
            f"loss or gradient were not finite in {steps} steps in a row (their updates were not applied). "
            f"What helps: {clip}a lower --peak_lr{fp32}"
        )
