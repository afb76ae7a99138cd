"""The program `pitstop`: what is done to runs from outside. `pitstop --help` must answer at once: imports wait."""

import sys
from collections.abc import Sequence
from importlib import import_module

from pitstop import __version__
from pitstop.errors import BAD_USAGE, FINISHED, UserError

COMMANDS = {  # name -> module of pitstop whose `command(argv)` does it and returns the exit code, and what for
    "launch": ("supervise", "start a recipe, pass signals on, start it again after a crash, leave no process behind"),
    "attach": ("attach", "look at a run from another terminal"),
    "status": ("status", "all runs at a glance: state, progress, time left, cost, what to type to go on"),
    "report": ("report", "curves, confusion matrix, examples, cost: one page, and its figures"),
    "compare": ("compare", "several runs in one table: accuracy, size, speed, cost"),
    "predict": ("predict", "classify files with a trained model"),
    "export": ("export", "the model for timm, torchvision, ONNX or TorchScript"),
    "fetch": ("fetch", "download data or weights beforehand; goes on where it was cut"),
    "sync": ("sync", "upload to W&B what it lacks, exactly once"),
    "verify": ("verify", "prove a run: compute a stretch of it again and compare hashes"),
    "archive": ("archive", "move a run aside, so that the same command starts anew"),
}
LATER = ("doctor",)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of `pitstop <argv>`; what went wrong is on stderr, without a traceback if a person can help it.

    Raises:
        SystemExit: after the help of a command (0) and after wrong flags (2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else ""
    if command in ("-h", "--help", "help"):
        print(_help())
        return FINISHED
    if command == "--version":
        print(f"pitstop {__version__}")
        return FINISHED
    if command not in COMMANDS:
        print(f"pitstop: {_unknown(command)}", file=sys.stderr)
        return BAD_USAGE
    try:
        return int(import_module(f"pitstop.{COMMANDS[command][0]}").command(words[1:]))
    except UserError as error:
        print(f"pitstop {command}: {error}", file=sys.stderr)
        return error.exit_code


def _help() -> str:
    return "\n".join(
        [
            "usage: pitstop COMMAND [--flag value ...]",
            "",
            "Training itself is a recipe's: pitstop launch recipes/cifar10.py, or accelerate launch recipes/cifar10.py",
            "",
            *(f"  {command:<10} {purpose}" for command, (_, purpose) in COMMANDS.items()),
            "",
            "  pitstop COMMAND --help   the flags of a command",
            "  pitstop --version        this is pitstop " + __version__,
            "",
            f"not there yet: {' '.join(LATER)}",
        ]
    )


def _unknown(command: str) -> str:
    from difflib import get_close_matches

    known = [*COMMANDS, *LATER]
    if not command:
        return f"a command was expected, one of: {' '.join(COMMANDS)}. See pitstop --help"
    if command in LATER:
        return f"the command {command} is not there yet. See pitstop --help"
    near = get_close_matches(command.lower().lstrip("-"), known, n=1)
    hint = f"did you mean {near[0]}{' (not there yet)' if near[0] in LATER else ''}?" if near else "See pitstop --help"
    return f"there is no command {command!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
