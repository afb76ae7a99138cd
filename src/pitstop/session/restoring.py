"""What a checkpoint puts back into the live objects, on all ranks: only rank 0 needs to see the disk."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop import state
from pitstop.record import Metrics
from pitstop.session import messages
from pitstop.session.attempt import Attempt
from pitstop.session.identity import differences
from pitstop.session.place import Place
from pitstop.session.saver import Saver


def put_back(
    attempt: Attempt,
    place: Place,
    saver: Saver,
    model: nn.Module,
    optimizer: Optimizer,
    owners: Mapping[str, state.Stateful],
) -> dict[str, Any] | None:
    """The manifest of the newest good checkpoint, whose state is now that of the arguments; None: there is none.

    Raises:
        UserError: other data than before, no room on the disk, the directory is in use.
    """
    tensors, about = _read(attempt, saver, model, optimizer, owners) if attempt.leads else ({}, None)
    if place.world > 1:
        tensors, about = state.broadcast(tensors, about, place.device)
    if about:
        state.put_back(model, optimizer, tensors)
        state.join(owners, tensors, about["state"])
    return about


def _read(
    attempt: Attempt, saver: Saver, model: nn.Module, optimizer: Optimizer, owners: Mapping[str, state.Stateful]
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Opens the run directory; tensors and manifest of the newest good checkpoint, if there is one."""
    attempt.definition.settle()
    live = state.split(owners)[0] | state.collect(model, optimizer)
    found = saver.find(sum(tensor.nbytes for tensor in live.values()))
    return (found.tensors, found.manifest) if found else ({}, None)


def settle(
    about: dict[str, Any] | None,
    begun: float,
    shape: dict[str, Any],
    metrics: Metrics,
    attempt: Attempt,
    saver: Saver,
    tensors: dict[str, Tensor],
) -> None:
    """On rank 0: puts the files where the checkpoint is, makes the saver ready, and says what is no longer as it was.

    Args:
        about: manifest of the checkpoint; None: there is none.
        begun: when restoring began, by the monotonic clock.
        tensors: what a checkpoint is going to hold.
    """
    if missing := metrics.open_at(about["metrics_bytes"] if about else 0):
        attempt.say(f"metrics.jsonl lacks {missing} bytes that the checkpoint knows: rows before it are lost")
    saver.ready(about["step"] if about else -1, tensors)
    if about is None:
        return
    step = about["step"]
    attempt.saved(step, about["metrics_bytes"])  # the store and the tracker may lack it
    attempt.run.event("restore", step=step, seconds=round(time.monotonic() - begun, 3))
    if changes := differences(about["shape"], shape):
        attempt.run.event("shape_changed", step=step, changes=changes)
        attempt.say(messages.shape_changes(changes))
