"""What can go wrong, said to a person: each error names what was given, what was expected, and the next thing to do."""

FINISHED = 0
FAILED = 1  # a defect, ours or the recipe's: there is a traceback
BAD_USAGE = 2  # nothing was started
START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: preempted, or the run directory is in use
PERSON_DECIDES = 76  # stopped on purpose


class UserError(ValueError):
    """Something that the person can put right; shown without a traceback, exit code 2."""

    exit_code = BAD_USAGE


class UsageError(UserError):
    """The command line is wrong: one line for each thing that is."""


class RunInUseError(UserError):
    """Another process holds the run directory; the same command may be given again, exit code 75."""

    exit_code = START_AGAIN


class StoppedError(UserError):
    """The run was stopped on purpose and does not go on by itself, exit code 76."""

    exit_code = PERSON_DECIDES
