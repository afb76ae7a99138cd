"""The tensors of a model and its optimizer, by name, out of the live objects and back into them."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop.errors import UserError


class Stateful(Protocol):
    """An owner of state: a flat dict of tensors and JSON values, by name."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def split(owners: Mapping[str, Stateful]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """What the owners keep: tensors as `<owner>/<key>`, and the rest, which must be JSON, by owner."""
    states = {name: owner.state_dict() for name, owner in owners.items()}
    tensors = {f"{n}/{key}": v for n, entries in states.items() for key, v in entries.items() if isinstance(v, Tensor)}
    values = {n: {k: v for k, v in entries.items() if not isinstance(v, Tensor)} for n, entries in states.items()}
    return tensors, values


def join(owners: Mapping[str, Stateful], tensors: dict[str, Tensor], values: dict[str, dict[str, Any]]) -> None:
    """Gives every owner back what `split` took."""
    for name, owner in owners.items():
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        owner.load_state_dict(values.get(name, {}) | own)


def _optimizer_entries(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            yield name, parameter, optimizer.state[parameter]


def collect(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """`model/<name>` and `optimizer/<parameter>/<key>`: references to the live tensors.

    Raises:
        TypeError: the optimizer keeps something that is no tensor, or not of a parameter of this model.
    """
    strangers = set(optimizer.state) - set(model.parameters())
    if strangers:
        raise TypeError(f"the optimizer has {len(strangers)} parameters that are not the model's: they would be lost")
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, _, entry in _optimizer_entries(model, optimizer):
        for key, value in entry.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise TypeError(f"{type(optimizer).__name__} keeps {key} as {kind}; a tensor was expected")
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def changed_by_updates(model: nn.Module, tensors: dict[str, Tensor]) -> set[str]:
    """The names in `collect` of what nothing but the optimizer changes: parameters, and what it keeps of them."""
    parameters = {f"model/{name}" for name, _ in model.named_parameters()}
    return parameters | {name for name in tensors if name.startswith("optimizer/")}


def put_back(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Copies saved tensors into the live ones, whose strides stay: an update kernel that walks memory gives other bits
    if the momentum comes back in another memory format.

    Raises:
        UserError: names or sizes are not those of this model.
    """
    live = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    saved = {name for name in tensors if name.startswith("model/")}
    wrong = sorted(live.keys() ^ saved) + [n for n in sorted(live.keys() & saved) if live[n].shape != tensors[n].shape]
    if wrong:
        raise UserError(
            f"the checkpoint is of another model: {len(wrong)} tensors differ, the first is {wrong[0]} "
            f"({_sizes(tensors, wrong[0])} saved, {_sizes(live, wrong[0])} here)."
        )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        parameters = dict(model.named_parameters())
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parameter_name, _, key = rest.rpartition("/")
            if kind == "optimizer":
                parameter = parameters[parameter_name]
                optimizer.state[parameter][key] = _like(parameter, tensor, groups[id(parameter)])


def _like(parameter: nn.Parameter, saved: Tensor, group: dict[str, Any]) -> Tensor:
    """A state tensor as the optimizer itself would have made it: with the strides of its parameter, or a scalar."""
    if saved.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)
    return saved.to(parameter.device if group.get("fused") or group.get("capturable") else "cpu", copy=True)


def _sizes(tensors: dict[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "absent"


def broadcast(tensors: dict[str, Tensor], values: Any, device: torch.device) -> tuple[dict[str, Tensor], Any]:
    """Rank 0's tensors, on `device`, and JSON values, on every rank: only rank 0 needs to see the disk."""
    first = torch.distributed.get_rank() == 0
    header: list[Any] = [values, [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]]
    torch.distributed.broadcast_object_list(header, src=0)
    received = {}
    for name, size, dtype in header[1]:
        received[name] = tensors[name].to(device) if first else torch.empty(size, dtype=dtype, device=device)
        torch.distributed.broadcast(received[name], src=0)
    return received, header[0]
