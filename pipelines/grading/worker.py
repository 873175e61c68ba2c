r"""The grading process: reads batches, answers item by item. Run with ``python -m``, never imported.

It is started as a fresh interpreter and imports nothing of this project but its two walls, so it
holds no torch, GPU or thread of its parent. Answers and golds are foreign text, which sympy would
evaluate as Python: ``guard.py`` refuses what is no formula, and before the first text arrives
``walls.py`` gives up network, files, processes and environment.

Per batch the parent sends one line of JSON, ``{"grader": name, "first": number, "items": [[answer,
gold], ...]}``. Replies are a code (one byte) and a number (four): READY with ``first`` once the
grader is loaded (or MISSING with a length, a reason, and the end), then each item's verdict with its
number as soon as it is known, then DONE with the number that comes next.

The kernel enforces the deadline, in processor time: SIGPROF keeps its default action, so it ends the
process even inside one endless C call such as 3**10**8, and even after the parent has died.

What is changed in the graders besides the guard never changes a verdict, it only spares work; every
such place says why, and ``tests/grading/test_graders.py`` holds each against the unchanged package.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

from pipelines.grading import guard, walls

READY, MISSING, DONE, TRIED, TRUE, FALSE = b"R", b"X", b"D", b"P", b"T", b"F"
REFUSED = b"G"  # false, and the guard kept some of it from sympy
UNDECIDED, OPEN = b"U", b"O"  # no verdict: the process ends; no verdict: the process goes on
REPLY = struct.Struct(">cI")
_PR_SET_PDEATHSIG = 1
_WARM_UP = (r"\frac{1}{2}", "0.5")
_MEMORY_SHARE = 0.75
"""An answer whose grading took more than this share of the limit is undecided: the graders swallow
the MemoryError that would have followed, and would report it as a plain wrong."""
_LONGEST_KEPT = 300
"""Texts up to this length are parsed once for all answers to a question."""
_LARGEST_BITS = 10**8
"""Whole numbers above this size are not computed; 3**(6.4 * 10**7) is one, and takes half a minute."""
_LARGEST_POWER_OF_TWO = 2**33
"""In bits: 1 GiB."""

Compare = Callable[[str, str], bool | None]


class TooLarge(BaseException):
    """A number above ``_LARGEST_BITS`` would be computed. No Exception: the graders swallow those."""

    raised = False  # since the item began, even if something swallowed it

    def __init__(self) -> None:
        super().__init__()
        TooLarge.raised = True


@functools.cache
def _refuse_huge_numbers() -> None:
    """Make sympy refuse at once what it could not compute before any deadline.

    A power of whole numbers or a factorial with more than ``_LARGEST_BITS`` bits (9**9**9 has 10**9)
    runs for half a minute at least and then on in every use of the result. mpmath's power loops over
    the exponent's bits and shifts all of them each time: 10**7 of them take a quarter of an hour.
    """
    from mpmath import libmp
    from sympy import Integer, Rational, factorial
    from sympy.core import evalf, numbers

    def guarded_power(compute: Callable[..., Any]) -> Callable[..., Any]:
        def power(base: Any, exponent: Any) -> Any:
            if isinstance(exponent, Integer):
                part = max(abs(base.p), base.q)
                odd = part // (part & -part)  # powers of 2 are quick until memory ends
                bits = (odd.bit_length() - 1) * abs(exponent.p)  # 2**bits <= the power
                twos = (part.bit_length() - 1) * abs(exponent.p)
                if bits > _LARGEST_BITS or twos > _LARGEST_POWER_OF_TWO:
                    raise TooLarge
            return compute(base, exponent)

        return power

    def guarded_float_power(s: Any, t: Any, precision: int, *rounding: Any) -> Any:
        _, mantissa, shift, bits = t
        endless = shift > _LARGEST_BITS // 10
        digits = precision > _LARGEST_BITS and shift + bits > 27  # 2**27 is above the limit
        if mantissa and s[1] > 1 and (endless or digits):
            raise TooLarge
        return float_power(s, t, precision, *rounding)

    def guarded_factorial(cls: Any, n: Any) -> Any:
        if isinstance(n, Integer) and n.p > _LARGEST_BITS // 10:  # n! has more than 10 n bits
            raise TooLarge
        return compute_factorial(n)

    Rational._eval_power = guarded_power(Rational._eval_power)
    Integer._eval_power = guarded_power(Integer._eval_power)
    compute_factorial = factorial.eval
    factorial.eval = classmethod(guarded_factorial)
    float_power = libmp.mpf_pow
    libmp.mpf_pow = evalf.mpf_pow = numbers.mpf_pow = guarded_float_power


def _surely_not_zero(expression: Any) -> bool:
    """Whether an expression, at one point if it has symbols, is a number that is not 0.

    Simplifying takes most of the time, and never makes 0 of what is not 0. sympy's evalf raises its
    precision until the first digit is certain, and says when it cannot (precision 1).

    simplify replaces a rounded number by a fraction within 1e-14 of it. So does this one, unless
    such numbers only scale terms: then a sum above a millionth of its terms is surely not 0.
    """
    from sympy import Add, Float, Rational, Symbol, nsimplify

    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) > len(_POINTS) or any(
        type(symbol) is not Symbol or symbol.is_integer or symbol.is_negative for symbol in symbols
    ):
        return False
    points = {symbol: Rational(point) for symbol, point in zip(symbols, _POINTS, strict=False)}
    smallest = 0.0
    if expression.has(Float):
        terms = Add.make_args(expression)
        if any(term.as_coeff_Mul()[1].has(Float) for term in terms):
            expression = nsimplify(expression, rational=True)
        else:
            smallest = 1e-6 * sum(abs(term.evalf(15, subs=points)) for term in terms)
    value = expression.evalf(15, subs=points)
    return isinstance(value, Float) and value._prec != 1 and bool(abs(value) > smallest)


_POINTS = ("0.31830988", "0.73908513", "0.56714329")  # positive, and no root of anything by chance


def _skip_proofs_of_inequality(prove_zero: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """``prove_zero(difference)``, called only where the difference may be 0."""
    from sympy import Expr

    def is_zero(difference: Any) -> bool:
        if isinstance(difference, Expr):
            try:
                if _surely_not_zero(difference):
                    return False
            except (MemoryError, RecursionError):
                raise
            except Exception:  # evalf cannot say; the proof decides
                pass
        return prove_zero(difference)

    return is_zero


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, a pure one of a text, remembering what it made of short texts."""
    remember = functools.lru_cache(maxsize=1024)(function)

    @functools.wraps(function)
    def once(text: str) -> Any:
        return remember(text) if len(text) <= _LONGEST_KEPT else function(text)

    return once


def _load_mathruler() -> Compare:
    from mathruler import grader
    from sympy import simplify

    simplifies_to_zero = _skip_proofs_of_inequality(lambda expr: bool(simplify(expr) == 0))

    def equal_under_sympy(gold: str, answer: str) -> bool:
        """mathruler's comparison of the same name, but running out of memory or stack shows."""
        expression = f"({gold})-({answer})"
        try:
            if not grader.should_allow_eval(expression):
                return False
            return simplifies_to_zero(grader._sympy_parse(expression))
        except (MemoryError, RecursionError):
            raise
        except Exception:  # whatever sympy makes of text that is no formula: mathruler says unequal
            return False

    guard.install()
    grader.are_equal_under_sympy = equal_under_sympy
    grader._normalize = _kept(grader._normalize)
    grader.normalize_answer = _kept(grader.normalize_answer)
    _refuse_huge_numbers()
    return grader.grade_answer


def _load_math_verify() -> Compare:
    import logging

    from math_verify import grader, parse, verify
    from sympy import Expr

    logging.disable(logging.WARNING)  # it warns that its timeouts are off; ours is on
    symbolic_eq = grader.sympy_symbolic_eq

    def equal_symbolically(a: Any, b: Any) -> bool:
        """math-verify's comparison of the same name, spared where the numbers say unequal."""
        if isinstance(a, Expr) and isinstance(b, Expr):
            return _skip_proofs_of_inequality(lambda _: symbolic_eq(a, b))(a - b)
        return symbolic_eq(a, b)

    def parsed(text: str) -> Any:
        # The box anchors the whole text as LaTeX; without it parts of the text are tried.
        return parse(f"\\boxed{{{text}}}", parsing_timeout=None)  # type: ignore[arg-type]

    def compare(answer: str, gold: str) -> bool:
        gold_parsed, answer_parsed = read(gold), read(answer)
        return verify(gold_parsed, answer_parsed, timeout_seconds=None)

    guard.install()
    grader.sympy_symbolic_eq = equal_symbolically
    read = _kept(parsed)
    _refuse_huge_numbers()
    return compare


def _load_path(name: str) -> Compare:
    """The function at an import path ``package.module:function``; the current folder counts, and stays.

    Its source is compared by who started this process, before and after.
    """
    module, _, attribute = name.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    function: Compare = getattr(importlib.import_module(module), attribute)
    os.chdir(folder)
    return function


def _guard_what_it_uses() -> None:
    """Where a grader of one's own calls one of ours, that is guarded there as well."""
    for package, load in (("mathruler.grader", _load_mathruler), ("math_verify", _load_math_verify)):
        if package in sys.modules:
            load()


def _load_published(name: str) -> Compare:
    """The package's own comparison, with no change and no guard: what ours is held against."""
    if name == "mathruler":
        from mathruler import grader

        return grader.grade_answer
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)

    def compare(answer: str, gold: str) -> bool:
        texts = (gold, answer)
        parsed = [parse(f"\\boxed{{{t}}}", parsing_timeout=None) for t in texts]  # type: ignore[arg-type]
        return verify(*parsed, timeout_seconds=None)

    return compare


_LOADERS: dict[str, Callable[[], Compare]] = {"mathruler": _load_mathruler, "math-verify": _load_math_verify}


def _load(name: str, guarded: bool) -> Compare:
    if name not in _LOADERS:
        function = _load_path(name)
        if guarded:
            _guard_what_it_uses()
        return function
    compare = _LOADERS[name]() if guarded else _load_published(name)
    compare(*_WARM_UP)
    return compare


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
    """One verdict. A grader that fails instead of answering leaves the item without one."""
    TooLarge.raised = guard.Refused.raised = False
    signal.setitimer(signal.ITIMER_PROF, deadline_s)
    try:
        result = compare(answer, gold)
        verdict = TRUE if result == True else FALSE if result == False else OPEN  # noqa: E712
    except (MemoryError, RecursionError):  # never silently wrong
        verdict = UNDECIDED
    except (Exception, SystemExit, TooLarge):
        verdict = OPEN
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if _peak_bytes() > peak_limit:
        return UNDECIDED
    if TooLarge.raised:
        return OPEN
    return REFUSED if verdict == FALSE and guard.Refused.raised else verdict


class Replies:
    """The way back to the parent: a descriptor that nothing else knows as its output.

    Whatever a library or an answer prints goes nowhere.
    """

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        os.dup2(2, 1)

    def send(self, code: bytes, number: int, text: bytes = b"") -> None:
        """One reply. ``number`` is the length of ``text`` where there is one."""
        os.write(self._pipe, REPLY.pack(code, number) + text)


def main(order: dict[str, Any]) -> None:
    """Load the first grader, give up what no grader needs, and serve until the pipe closes."""
    _limit_resources(order["memory_mb"] << 20, order["parent"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    replies, peak_limit = Replies(), _MEMORY_SHARE * (order["memory_mb"] << 20)
    loaded: dict[str, Compare] = {}

    def load(name: str) -> None:
        if name in loaded:
            return
        try:
            loaded[name] = _load(name, order["guarded"])
        except MemoryError:
            sys.exit()
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:2_000]
            replies.send(MISSING, len(reason), reason)
            sys.exit()

    load(order["grader"])
    means: dict[str, str] = {}
    if order["contained"]:
        # A grader of one's own may start threads when it first computes, so it may later as well.
        means = walls.contain(threads=order["grader"] not in _LOADERS)
    for line in sys.stdin.buffer:
        batch = json.loads(line)
        if "attempt" in batch:
            found = {"means": means, "refused": walls.attempt(*batch["attempt"])}
            text = json.dumps(found).encode()
            replies.send(TRIED, len(text), text)
            continue
        load(batch["grader"])
        compare, number = loaded[batch["grader"]], batch["first"]
        replies.send(READY, number)
        for answer, gold in batch["items"]:
            verdict = _grade(compare, answer, gold, order["deadline_s"], peak_limit)
            replies.send(verdict, number)
            if verdict == UNDECIDED:
                return  # what is left of this process after such a failure is not to be trusted
            number += 1
        replies.send(DONE, number)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
