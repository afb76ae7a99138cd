"""One live bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

PLAIN_EVERY_SECONDS = 10.0


class Progress:
    """Where the training is. On a terminal a bar; in a file or a notebook a line every ten seconds at most.

    Args:
        done, total: steps.
        shown: False on ranks that print nothing.
    """

    def __init__(self, done: int, total: int, *, shown: bool) -> None:
        self.live = shown and sys.stderr.isatty()
        self._plain = shown and not self.live
        self._total, self._last_line = total, 0.0
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not self.live,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            leave=False,
        )

    def step(self) -> None:
        self._bar.update()

    def row(self, step: int, text: str, left: str) -> None:
        """What a row of metrics says; the bar has its own estimate of the time that is left."""
        self._bar.set_postfix_str(text, refresh=False)
        due = time.monotonic() - self._last_line >= PLAIN_EVERY_SECONDS or step == self._total
        if self._plain and due:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._total}  {text}  {left} left")

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        tqdm.write(text, file=sys.stdout if not self.live else sys.stderr)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
