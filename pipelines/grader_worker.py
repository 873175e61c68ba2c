r"""The grading process: reads batches, answers one byte per item. Run as a script, never imported.

It stands alone (nothing of this project is imported) and is started as a fresh interpreter, so it
holds no torch, GPU or thread of its parent. Per batch the parent sends one line of JSON,
``{"grader": name, "items": [[answer, gold], ...]}``, and gets one byte once the grader is loaded
(READY, or MISSING), then one byte per item as soon as it is known.

The kernel enforces the deadline: SIGALRM keeps its default action, so it ends the process even
inside one endless C call such as 9**9**9, and even after the parent has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

READY, MISSING, TRUE, FALSE, UNDECIDED = b"R", b"X", b"T", b"F", b"U"
_PR_SET_PDEATHSIG = 1
_WARM_UP = (r"\frac{1}{2}", "0.5")
_MEMORY_SHARE = 0.75
"""An answer whose grading took more than this share of the limit is undecided: the graders swallow
the MemoryError that would have followed, and would report it as a plain wrong."""

Compare = Callable[[str, str], bool]


def _load_mathruler() -> Compare:
    from mathruler import grader
    from sympy import simplify

    def equal_under_sympy(gold: str, answer: str) -> bool:
        """mathruler's comparison of the same name, but running out of memory or stack shows."""
        expression = f"({gold})-({answer})"
        try:
            if not grader.should_allow_eval(expression):
                return False
            return bool(simplify(grader._sympy_parse(expression)) == 0)
        except (MemoryError, RecursionError):
            raise
        except Exception:  # whatever sympy makes of text that is no formula: mathruler says unequal
            return False

    grader.are_equal_under_sympy = equal_under_sympy
    return grader.grade_answer


def _load_math_verify() -> Compare:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns that its timeouts are off; ours is on

    def compare(answer: str, gold: str) -> bool:
        # The box anchors the whole text as LaTeX; without it parts of the text are tried.
        gold_parsed, answer_parsed = (
            parse(f"\\boxed{{{text}}}", parsing_timeout=None)  # type: ignore[arg-type]
            for text in (gold, answer)
        )
        return verify(gold_parsed, answer_parsed, timeout_seconds=None)

    return compare


_LOADERS: dict[str, Callable[[], Compare]] = {
    "mathruler": _load_mathruler,
    "math-verify": _load_math_verify,
}


def _limit_resources(memory_bytes: int, parent: int) -> None:
    """Bound memory, leave no core file, and die with the parent."""
    for limit, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a lower hard limit already holds, or macOS
            resource.setrlimit(limit, (value, value))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit()


def _peak_bytes() -> int:
    """The most memory this process has held; 0 where the system does not say.

    From /proc, as getrusage's maximum starts at the parent's size.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            peak = next((line for line in status if line.startswith("VmHWM:")), "VmHWM: 0")
    except OSError:
        return 0
    return int(peak.split()[1]) * 1024


def _grade(compare: Compare, answer: str, gold: str, deadline_s: float, peak_limit: float) -> bytes:
    """One verdict. A grader that fails instead of answering leaves the item undecided."""
    signal.setitimer(signal.ITIMER_REAL, deadline_s)
    try:
        verdict = TRUE if compare(answer, gold) else FALSE
    except Exception:  # not silent: the item is reported as undecided, never as wrong
        verdict = UNDECIDED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return UNDECIDED if _peak_bytes() > peak_limit else verdict


def main(deadline_s: float, memory_mb: int, parent: int) -> None:
    """Serve batches until the parent closes the pipe."""
    _limit_resources(memory_mb << 20, parent)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not enter the reply stream
    peak_limit = _MEMORY_SHARE * (memory_mb << 20)
    loaded: dict[str, Compare] = {}
    for line in sys.stdin.buffer:
        batch = json.loads(line)
        name = batch["grader"]
        if name not in loaded:
            try:
                loaded[name] = _LOADERS[name]()
            except ImportError:
                os.write(replies, MISSING)
                return
            loaded[name](*_WARM_UP)
        os.write(replies, READY)
        for answer, gold in batch["items"]:
            verdict = _grade(loaded[name], answer, gold, deadline_s, peak_limit)
            os.write(replies, verdict)
            if verdict == UNDECIDED:
                return  # what is left of this process after such a failure is not to be trusted


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
