"""The one expected error: what a person can put right, said without a traceback."""


class UserError(Exception):
    """Something in the user's input, files or environment that the user can put right.

    The command line prints it as ``error  <place>: <problem>`` and, on the next lines, ``fix``; the
    exit code is 2. Anything else that escapes is a fault of ours and keeps its traceback.

    Args:
        place: what is wrong and where: a config key, ``file, line 14``, a path.
        problem: what was found there, with the value.
        fix: what to do about it.
    """

    def __init__(self, place: str, problem: str, fix: str = "") -> None:
        self.place, self.problem, self.fix = place, problem, fix
        between = "\n" if "\n" in problem else " "  # of lines of code it may end with
        super().__init__(f"{place}: {problem}" + (f"{between}{fix}" if fix else ""))


class LockLost(Exception):
    """Another process has taken over what this one was writing, as it gave no sign for too long.

    Nothing more is written; the exit code is 1.
    """


class Interrupted(BaseException):
    """The user asked the run to stop (Ctrl-C or SIGTERM); everything committed so far is kept."""
