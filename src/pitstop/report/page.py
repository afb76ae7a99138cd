"""What the report says, in words: the values of the page's template."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pitstop import again, clocks
from pitstop.report.account import PARTS, Attempt, Exact
from pitstop.report.read import Predictions, Run, number
from pitstop.report.scores import CALIBRATION_BINS, Scores, most_confused, wilson
from pitstop.report.words import Words

CONFUSED_PAIRS = 12
DASH, SPACE = "\u2013", "\u00a0"  # no line breaks before the unit
Context = dict[str, Any]


def percent(share: float) -> str:
    return f"{100 * share:.2f}{SPACE}%"


def interval(hits: float, total: int) -> str:
    low, high = wilson(hits, total)
    return f"{100 * low:.2f}{DASH}{100 * high:.2f}{SPACE}%"


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or, below a minute, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s" if seconds else DASH
    return clocks.duration(seconds)


def money(run: Run, cost: float) -> str:
    return f"{cost:.2f}{SPACE}{run.status.get('currency', '')}".strip()


def machine(shape: dict[str, Any], words: Words) -> str:
    """`2 x NVIDIA A10G, bf16, torch 2.14.1, CUDA 13.0`"""
    device = str(shape.get("device", "?"))
    threads = f", {words('threads', count=shape['threads'])}" if shape.get("threads") else ""
    cuda = f", CUDA {shape['cuda']}" if shape.get("cuda") else ""
    processes = f"{shape['processes']} x " if shape.get("processes", 1) != 1 else ""
    return f"{processes}{device}{threads}, {shape.get('precision', '?')}, torch {shape.get('torch', '?')}{cuda}"


def exactness(exact: Exact, words: Words) -> str:
    if exact.yes is None:
        return words("exact_unknown")
    if exact.yes:
        return words("exact_yes")
    return words("exact_since", number=exact.since, why="; ".join(exact.why))


def head(run: Run, attempts: Sequence[Attempt], totals: Context, scores: Scores | None, words: Words) -> Context:
    """Title, what was trained, where it stands, and the figures that matter most."""
    status, definition = run.status, run.definition
    step, total = status.get("step", 0), status.get("total_steps", "?")
    last = max([*run.train, *run.evals], key=lambda row: row["step"], default={})
    classes = len(run.card.get("classes", ())) or (len(scores.confusion_KK) if scores else _classes(definition))
    state = str(status.get("state", "running"))
    return {
        "w": words,
        "title": run.path.name,
        "trained": words(
            "trained_on",
            model=definition.get("model", "?"),
            classes=classes,
            data=definition.get("data") or "?",
            steps=f"{step:,}" if isinstance(step, int) else step,
            total=f"{total:,}" if isinstance(total, int) else total,
            batch=definition.get("batch_size", "?"),
            epochs=f"{number(last, 'epoch') or 0:.3g}",
            seed=definition.get("seed", "?"),
        )
        + _last_machine(attempts, words),
        "finished": state == "finished",
        "state": words(
            f"state_{state if state in ('finished', 'stopped', 'failed') else 'running'}",
            step=step,
            total=total,
            reason=status.get("reason") or "?",
            heartbeat=str(status.get("heartbeat", "?"))[:19].replace("T", " "),
        ),
        "damaged": [words("damaged_file", name=name, why=why) for name, why in run.damaged.items()],
        "headline": _headline(run, attempts, totals, scores, words),
    }


def _classes(definition: dict[str, Any]) -> int | str:
    """How many, by the data that the run was begun with."""
    data_set = definition.get("data_set")
    classes = data_set.get("classes") if isinstance(data_set, dict) else None
    return len(classes) if isinstance(classes, list) and classes else "?"


def _last_machine(attempts: Sequence[Attempt], words: Words) -> str:
    shape = next((attempt.shape for attempt in reversed(attempts) if attempt.shape), None)
    gap = "" if words.language == "zh" else " "
    return gap + words("machine_was", machine=machine(shape, words)) if shape else ""


def _headline(
    run: Run, attempts: Sequence[Attempt], totals: Context, scores: Scores | None, words: Words
) -> list[Context]:
    told = accuracy(run, scores)
    note = (
        words("told", name=words("interval"), value=interval(scores.hits, scores.images)) if scores else words("so_far")
    )
    priced = bool(totals["price"] or totals["cost"])  # the last attempt may have had no price
    return [
        {"name": words("accuracy"), "value": DASH if told is None else percent(told), "note": note},
        {
            "name": words("paid"),
            "value": duration(totals["paid_seconds"]),
            "note": words("attempts_count" if len(attempts) != 1 else "one_attempt", count=len(attempts)),
        },
        {
            "name": words("cost"),
            "value": money(run, totals["cost"]) if priced else DASH,
            "note": f"{totals['price']:g} {totals['currency']}/h" if priced else words("no_price"),
        },
        {"name": words("goodput"), "value": f"{100 * totals['goodput']:.1f}{SPACE}%", "note": words("goodput_means")},
    ]


def accuracy(run: Run, scores: Scores | None) -> float | None:
    """Of the predictions, which the rest of the report is about; else of the last evaluation."""
    return scores.accuracy if scores else run.result.get("accuracy")


def errors(predictions: Predictions, scores: Scores, words: Words) -> Context:
    """Confused pairs, the table of classes, and what stands below ROC and reliability."""
    names, of = predictions.classes, scores.classes
    macro = of.macro()
    return {
        "confused": [
            {"true": names[true], "said": names[said], "count": count, "share": percent(count / of.support_K[true])}
            for true, said, count in most_confused(scores.confusion_KK, CONFUSED_PAIRS)
        ],
        "classes": [
            {
                "name": names[index],
                "precision": percent(of.precision_K[index]),
                "recall": percent(of.recall_K[index]),
                "interval": interval(int(scores.confusion_KK[index, index]), int(of.support_K[index])),
                "f1": percent(of.f1_K[index]),
                "f1_percent": f"{100 * of.f1_K[index]:.1f}",
                "support": f"{of.support_K[index]:,}",
            }
            for index in range(len(names))
        ],
        "macro": {name: percent(share) for name, share in macro.items()}
        | {"f1_percent": f"{100 * macro['f1']:.1f}", "support": f"{scores.images:,}"},
        "roc_caption": words("roc_caption", positive=names[1], auc=f"{scores.auc:.4f}")
        if scores.auc is not None
        else "",
        "calibration_caption": words(
            "calibration_caption", ece=percent(scores.calibration.error), bins=CALIBRATION_BINS
        ),
    }


def time_and_money(run: Run, attempts: Sequence[Attempt], totals: Context, words: Words) -> Context:
    """A row for each attempt, and all of them together, whose figures are those of the meter."""
    waited_seconds = sum(attempt.waited_seconds for attempt in attempts)
    waited = duration(waited_seconds)
    sums = {part: sum(attempt.seconds[part] for attempt in attempts) for part in PARTS}
    between = words("between_note", waited=waited) if waited_seconds else ""
    redone = words("redone_steps", count=totals["redone_steps"]) if totals["redone_steps"] else ""
    return {
        "parts": PARTS,
        "priced": bool(totals["price"] or totals["cost"]),
        "attempts": [
            {
                "number": attempt.number,
                "steps": DASH if attempt.first is None else f"{attempt.first}{SPACE}{DASH}{SPACE}{attempt.last}",
                "paid": duration(attempt.paid_seconds),
                "parts": [duration(attempt.seconds[part]) for part in PARTS],
                "waited": duration(attempt.waited_seconds),
                "cost": money(run, attempt.cost),
                "end": words(f"end_{attempt.end or 'open'}") + (f" ({attempt.reason})" if attempt.reason else ""),
            }
            for attempt in attempts
        ],
        "together": {
            "paid": duration(totals["paid_seconds"]),
            "parts": [duration(sums[part]) for part in PARTS],
            "waited": waited,
            "cost": money(run, totals["cost"]),
        },
        "rest_note": " ".join(filter(None, [words("rest_note"), between, redone])),
    }


def repeat(run: Run, attempts: Sequence[Attempt], exact: Exact, words: Words) -> Context:
    """Command, settings, machines: what someone needs who wants to see it again."""
    shape = next((attempt.shape for attempt in reversed(attempts) if attempt.shape), {})
    by_machine = groupby(
        attempts, lambda attempt: machine(attempt.shape, words) if attempt.shape else words("did_not_train")
    )
    return {
        "command": again.command(run.about, int(shape.get("processes", 1))),
        "folder": run.about.get("folder", "?"),
        "exactness": exactness(exact, words),
        "machines": [
            {"numbers": words("attempt_n", number=_span([one.number for one in same])), "machine": name}
            for name, same in by_machine
        ],
        "settings": [
            (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in run.definition.items()
        ],
    }


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} {DASH} {numbers[-1]}"
