"""A checkpoint's tensors in memory, as the file will have them: laid out once, filled anew for each save."""

import json

import numpy as np
import torch
from torch import Tensor

from pitstop.checkpoint.disk import to_bytes

# Exponent bits that are all ones say infinity or NaN (IEEE 754; bfloat16 is the upper half of a float32).
EXPONENTS = {
    torch.float64: 0x7FF0000000000000,
    torch.float32: 0x7F800000,
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Poisoned(ValueError):
    """The state holds infinities or NaN: it must not become the checkpoint that a run continues from."""

    def __init__(self, names: list[str]) -> None:
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        super().__init__(f"{names[0]}{more} hold infinities or NaN")


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, which numpy has for every width; bfloat16 it does not know."""
    return tensor.view(INTEGERS[tensor.element_size()])


class Image:
    """state.safetensors, twice: first as the live tensors lie in memory, which takes one straight copy; then as the
    file, into which a thread rearranges it (numpy: one core, and the GIL is released).

    On CUDA the first is pinned, and its copies are queued behind the step's kernels. Not measured on a GPU.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        self._stage = {n: torch.empty_like(t, device="cpu", pin_memory=pinned) for n, t in tensors.items()}
        self._file = bytearray(to_bytes(self._stage, {}))
        start = 8 + int.from_bytes(self._file[:8], "little")  # the layout is the library's: a length, then JSON
        layout = json.loads(self._file[8:start])
        whole = torch.frombuffer(self._file, dtype=torch.uint8)
        self._views = {}
        for name, tensor in self._stage.items():
            first, last = layout[name]["data_offsets"]
            self._views[name] = whole[start + first : start + last].view(tensor.dtype).view(tensor.shape)
        self._copied: torch.cuda.Event | None = None

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Are these the tensors, by name, type and memory order, that it was laid out for?"""
        return tensors.keys() == self._stage.keys() and all(
            (t.shape, t.stride(), t.dtype) == (s.shape, s.stride(), s.dtype)
            for t, s in zip(tensors.values(), (self._stage[name] for name in tensors), strict=True)
        )

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Takes these values. From CUDA it returns before they are here; the next step waits for them, on the GPU."""
        for name, tensor in tensors.items():
            if tensor.is_cuda:
                self._stage[name].copy_(tensor.detach(), non_blocking=True)
            else:  # one core: two of torch's threads would wait for each other on a machine that is busy
                np.copyto(_bits(self._stage[name]).numpy(), _bits(tensor.detach()).numpy())
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def arrange(self) -> set[str]:
        """Makes the file of what `fill` took. Returns the names of the tensors that are not finite."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name for name, tensor in self._stage.items() if not self._arrange(tensor, self._views[name])}

    @property
    def file(self) -> memoryview:
        """The bytes of state.safetensors, after `arrange`."""
        return memoryview(self._file)

    @staticmethod
    def _arrange(tensor: Tensor, view: Tensor) -> bool:
        """Copies one tensor to its place in the file. Is it finite?"""
        values, place = _bits(tensor).numpy(), _bits(view).numpy()
        np.copyto(place, values)
        exponent = EXPONENTS.get(tensor.dtype)
        return exponent is None or not bool(((place & exponent) == exponent).any())
