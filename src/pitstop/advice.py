"""What an experienced colleague would say on looking at the figures: one line each, with the evidence and the flag.

All functions are given figures and return lines; nothing here changes a run. A healthy run hears nothing.
"""

import math
from collections.abc import Mapping, Sequence

from pitstop.config import RecipeConfig

FEW_IMAGES = 200  # of a class: below, each further image helps more than any flag
UNBALANCED = 3.0  # largest class over smallest
FLAT = 0.02  # share by which a loss has to fall below its beginning, or below chance
GAP = 0.15  # train accuracy over that of held-out images
LOW_RECALL, LOW_BY = 0.5, 0.2  # of a class: alone it says little where all are low
ENOUGH = 10  # images of a class, or rows of metrics, before anything is said of them
STARVING = 0.3  # share of the time in which the device waits for images
NAMED = 5
OR_ANOTHER = ("weights", "class_weights")  # weights of another run, or to resample, are as good


class Flags:
    """The flags that this recipe has, so that no line names one that it lacks."""

    def __init__(self, config: RecipeConfig) -> None:
        self.config, self._names = config, set(type(config).model_fields)

    def among(self, **wanted: object) -> str:
        """`--class_weights balanced` and so on, of those that the recipe has and that would be news to the person."""
        new = (name for name, value in wanted.items() if name in self._names and self._is_news(name, value))
        return ", ".join(f"--{name} {wanted[name]}" for name in new)

    def _is_news(self, name: str, value: object) -> bool:
        """Not given so already; nor, where another choice serves as well, turned to something else."""
        given = getattr(self.config, name)
        if name in OR_ANOTHER:
            return bool(given == "none")
        turned = isinstance(value, int | float) and given != type(self.config).model_fields[name].default
        return bool(given != value) and not turned


def of_classes(counts: Sequence[int], classes: Sequence[str], flags: Flags) -> list[str]:
    """Before the first step: images per class of the training set."""
    smallest, largest = min(range(len(counts)), key=counts.__getitem__), max(range(len(counts)), key=counts.__getitem__)
    lines = []
    ratio = counts[largest] / max(1, counts[smallest])
    if ratio > UNBALANCED:
        flag = flags.among(class_weights="balanced")
        lines.append(
            f"the classes are unbalanced, {ratio:.0f} to 1 ({classes[largest]} {counts[largest]:,}, "
            f"{classes[smallest]} {counts[smallest]:,} images)"
            + (f": {flag}" if flag else ": look at recalls, not only accuracy")
        )
    if few := sorted((count, name) for count, name in zip(counts, classes, strict=True) if count < FEW_IMAGES):
        shown = ", ".join(f"{name} {count}" for count, name in few[:NAMED]) + (", ..." if few[NAMED:] else "")
        helps = flags.among(weights="pretrained", augment="strong")
        lines.append(
            f"{len(few)} of {len(classes)} classes have fewer than {FEW_IMAGES} images ({shown}): more images help most"
            + (f"; then {helps}" if helps else "")
        )
    return lines


class Watch:
    """Looks at the rows of one attempt, and says each thing once."""

    def __init__(self, flags: Flags, counts: Sequence[int], classes: Sequence[str]) -> None:
        self._flags, self._classes = flags, classes
        shares = [count / sum(counts) for count in counts]
        self._chance_loss = -sum(share * math.log(share) for share in shares if share)  # of one that knows the shares
        self._chance = max(shares)
        self._losses: list[float] = []
        self._accuracy = math.nan  # of the newest train row
        self._low: set[str] = set()  # classes of the newest evaluation
        self._lower = flags.among(peak_lr=f"{flags.config.peak_lr / 10:g}")
        self._said: set[str] = set()

    def _once(self, kind: str, line: str) -> list[str]:
        if kind in self._said:
            return []
        self._said.add(kind)
        return [line]

    def row(self, epoch: float, row: Mapping[str, float], waited: float = 0.0) -> list[str]:
        """A train row. `waited`: share of the time since the last one in which there was no batch."""
        lines, loss = [], float(row["loss"])
        self._losses.append(loss)
        self._accuracy = float(row.get("accuracy", math.nan))
        first, last = self._losses[:3], self._losses[-3:]
        then, now = sum(first) / len(first), sum(last) / len(last)
        if len(self._losses) >= ENOUGH and epoch >= 1:
            if now > 1.5 * max(self._chance_loss, min(self._losses)):
                lines += self._once(
                    "jumps",
                    f"the loss jumps: {now:.2f} after {min(self._losses):.2f} (guessing has {self._chance_loss:.2f}): "
                    + ", ".join(filter(None, (self._lower, self._flags.among(clip_grad_norm=1)))),
                )
            elif min(self._losses) > (1 - FLAT) * self._chance_loss and now > (1 - FLAT) * then:
                lines += self._once(
                    "flat",
                    f"the loss is flat: {now:.2f} after {epoch:.1f} epochs, {then:.2f} at first, guessing has "
                    f"{self._chance_loss:.2f}: {self._lower}; if that does not help, look whether the labels are right",
                )
        if waited > STARVING and len(self._losses) > 2:  # workers start up in the first
            helps = self._flags.among(cache=True, workers="auto")
            lines += self._once(
                "starves",
                f"the device waits for images {100 * waited:.0f} % of the time" + (f": {helps}" if helps else ""),
            )
        return lines

    def evaluation(self, epoch: float, accuracy: float, recalls: Sequence[float], supports: Sequence[int]) -> list[str]:
        """An evaluation on held-out images.

        Args:
            recalls: by class, NaN where there is no image; supports: images of each class.
        """
        number, lines = sum(supports), []
        if epoch < 2 or number < ENOUGH:
            return []
        noise = 2 * math.sqrt(self._chance * (1 - self._chance) / max(1, number))
        if accuracy <= self._chance + noise:
            return self._once(
                "chance",
                f"accuracy is {100 * accuracy:.1f} % after {epoch:.1f} epochs, always saying the largest class gives "
                f"{100 * self._chance:.1f} %: {self._lower}; look whether images and labels belong together",
            )
        if self._accuracy - accuracy > GAP:
            helps = self._flags.among(weights="pretrained", augment="strong", weight_decay=5e-3, patience=5)
            lines += self._once(
                "gap",
                f"it learns by heart: {100 * self._accuracy:.1f} % on training images, {100 * accuracy:.1f} % on "
                f"others: more images" + (f", or {helps}" if helps else " help most"),
            )
        low = [
            (recall, name)
            for recall, name, support in zip(recalls, self._classes, supports, strict=True)
            if support >= ENOUGH and recall < LOW_RECALL and recall < accuracy - LOW_BY
        ]
        before, self._low = self._low, {name for _, name in low}
        low = [(recall, name) for recall, name in low if name in before]  # once may be chance, early on
        if low:
            named = ", ".join(f"{name} {100 * recall:.0f} %" for recall, name in sorted(low)[:NAMED])
            flag = self._flags.among(class_weights="balanced")
            lines += self._once(
                "recall",
                f"of some classes fewer than half are found ({named}; all together {100 * accuracy:.0f} %): "
                + (f"{flag}, or more images of them" if flag else "more images of them"),
            )
        return lines


def of_input(mean: Sequence[float], std: Sequence[float], weights: str) -> list[str]:
    """Of the first batch, normalised: pretrained weights expect a mean near 0 and a deviation near 1."""
    if weights != "none" and (any(abs(value) > 1.5 for value in mean) or any(not 0.2 < value < 4 for value in std)):
        return [
            f"normalised images have mean {mean[0]:.1f} and deviation {std[0]:.1f}, 0 and 1 were expected: the "
            "normalisation does not fit the images"
        ]
    return []
