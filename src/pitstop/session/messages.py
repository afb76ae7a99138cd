"""What a run says, in words."""

import re
import shlex
from pathlib import Path
from typing import Any

from pitstop.clocks import duration
from pitstop.memory import Shortage


def result_line(result: dict[str, float]) -> str:
    """`accuracy 97.22 %, accuracy_mirror 97.50 %, loss 0.0981`"""
    ordered = sorted(result.items(), key=lambda item: not item[0].startswith("accuracy"))
    numbers = ((name, float(value)) for name, value in ordered)  # NaN is text in JSON
    texts = (f"{100 * value:.2f} %" if name.startswith("accuracy") else f"{value:.4f}" for name, value in numbers)
    return ", ".join(f"{name} {text}" for (name, _), text in zip(ordered, texts, strict=True))


def where(run: Path) -> str:
    typed = shlex.quote(str(run))
    return (
        f"  the model     {run / 'final' / 'model.safetensors'} (with model.json)\n"
        f"  the curves    {run / 'metrics.jsonl'}\n"
        f"  what happened {run / 'events.jsonl'}, {run / 'train.log'}\n"
        f"  next          pitstop report {typed}\n"
        f"                pitstop predict {typed} PICTURES\n"
        f"                pitstop export {typed} --format onnx"
    )


def stopped(step: int, total_steps: int, reason: str, saved_step: int) -> str:
    on = f"continues at step {saved_step}" if saved_step >= 0 else "begins anew"
    return f"stopped at step {step} of {total_steps} ({reason}); the same command {on}"


def bill(status: dict[str, Any]) -> str:
    """`paid 0:41:10 in 3 attempts (0.69 CNY), 96.1 % of it in steps that counted`"""
    attempts = status.get("attempt", 1)
    cost = f" ({status['cost']:.2f} {status['currency']})" if status.get("cost") else ""
    return (
        f"paid {duration(status.get('paid_seconds', 0))} in {attempts} attempt{'s'[: attempts != 1]}{cost}, "
        f"{100 * status.get('goodput', 0):.1f} % of it in steps that counted"
    )


def finished(run: Path, status: dict[str, Any]) -> str:
    """The result, the bill, and what to type next."""
    unseen = " (on val, which has chosen the weights: no separate test set)" if status.get("split") == "val" else ""
    attempts = status.get("attempt", 1)
    return (
        f"{run.name} is finished after {status.get('total_steps')} steps in {attempts} attempt{'s'[: attempts != 1]}: "
        f"{result_line(status.get('result', {}))}{unseen}\n  {bill(status)}\n{where(run)}"
    )


def header(run: Path, reached: dict[str, Any], batch_size: int, shape: dict[str, Any], attempt: int) -> str:
    """What is in force: said at the start of every attempt."""
    threads = f", {shape['threads']} thread{'s'[: shape['threads'] != 1]}" if shape["threads"] else ""
    processes = f"{shape['processes']} x " if shape["processes"] > 1 else ""
    begins = f"continues at step {reached['step']}" if reached["step"] else "begins at step 0"
    return (
        f"{run}: attempt {attempt} {begins} of {reached['total_steps']}, {batch_size} images each, "
        f"in {shape['precision']} on {processes}{shape['device']}{threads}"
    )


def shape_changes(lines: list[str]) -> str:
    listed = "\n".join(f"    {line}" for line in lines)
    return (
        "The shape of the machine has changed; samples, their order, augmentation and learning rate stay the same,\n"
        f"  but from here on the result is no longer bit-equal to that of an uninterrupted run:\n{listed}"
    )


def _words(shortage: Shortage) -> str:
    """`out of memory with 20 images at once (Tried to allocate 2.00 GiB)`"""
    tried = re.search(r"Tried to allocate [\d.]+ \w+", shortage.why)
    why = tried[0] if tried else shortage.why.partition("\n")[0]
    images = f" with {shortage.images} image{'s'[: shortage.images != 1]} at once" if shortage.images else ""
    return f"out of memory{images} ({why})"


def fewer_images(shortage: Shortage, step: int) -> str:
    """It goes on with half as many images at once."""
    if shortage.where == "probe":
        return f"{_words(shortage)}: {shortage.fewer} are tried"
    if shortage.where == "evaluation":
        return f"{_words(shortage)} in the evaluation after {step} steps: it goes on with {shortage.fewer}"
    return (
        f"{_words(shortage)} in step {step}: it is repeated with {shortage.fewer}. The batch, its samples and the\n"
        "  learning rate stay the same, but from here on the result is no longer bit-equal to that of a run with more\n"
        "  memory"
    )


def next_attempt(shortage: Shortage, step: int, rank: int | None) -> str:
    """It cannot go on, but the next attempt can."""
    who, other = ("", "its weights may be half updated") if rank is None else (f" on rank {rank}", "others wait for it")
    return (
        f"{_words(shortage)}{who} in step {step}, which cannot be repeated ({other}). The next attempt, by the same "
        f"command, continues at the last checkpoint with {shortage.fewer} at once."
    )


def no_room(shortage: Shortage, free: str, knobs: list[str]) -> str:
    """There is no memory for the fewest images that can be."""
    floor = ", and fewer cannot be" if shortage.images else ", before the first step"
    return f"{_words(shortage)}{floor}{f'; {free}' if free else ''}. What helps: {', or '.join(knobs)}."
