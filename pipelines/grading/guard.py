r"""Wall one: text is refused before sympy evaluates it as Python.

sympy's ``parse_expr``, and with it ``sympify`` of any text, turns text into Python and evaluates
that. Both graders lead there, so the guard stands at that one place, whoever calls: the text has to
be a formula before sympy's parser sees it, what the parser made of it has to be a formula before it
is evaluated, and the evaluation knows mathematical functions only, and no builtins.

What is refused is never evaluated: to mathruler such texts are unequal, as where its own guard
refuses. Runs in the grading process only; nothing else may import sympy.
"""

from __future__ import annotations

import ast
import builtins
import functools
import io
import keyword
import re
import tokenize
import unicodedata
from collections.abc import Container
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
"""The names besides ASCII: mathruler turns ``\\alpha`` into ``α``. Unicode folds none of them."""
_NAME = re.compile(rf"(?!.*__)[A-Za-z_{_GREEK}][A-Za-z0-9_{_GREEK}]*")
_OPERATORS = _words("+ - * / // % ** ^ ! ( ) , < > <= >= << >> & | ~ == !=")
_NO_FORMULA = _words("= : ; @")
"""What ordinary answers hold (``x=5``, ``1:2``) and no expression can: wrong, and no refusal."""
_LAYOUT = frozenset((tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER))

_CONSTANTS = _words("pi E I oo zoo nan GoldenRatio EulerGamma Catalan TribonacciConstant")
_PLAIN_FUNCTIONS = _words("sqrt cbrt root real_root gcd lcm abs max min round Mod Min Max")
_TAKE_TEXT = _words("Symbol Function Integer Float Rational Number")
"""What sympy's parser wraps names and numbers in: the only places for text in what it makes."""
_BUILDERS = _TAKE_TEXT | _words("Add Mul Pow Eq Ne Lt Le Gt Ge And Or Not")
"""What formulas are built of; the operators are those of ``evaluate=False``."""
_HARMLESS_BUILTINS = _words("abs max min pow round sum complex float int range")
_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.Tuple,
    ast.List,
    ast.Set,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
)
_COMPILED_NODES = (
    *_NODES,
    ast.Module,
    ast.FunctionDef,
    ast.arguments,
    ast.arg,
    ast.Return,
    ast.Assign,
    ast.Store,
    ast.Expr,
    ast.IfExp,
)


class Refused(Exception):
    """Text that would be evaluated and is no formula."""

    raised = False  # since the item began, even if a grader swallowed it

    def __init__(self, what: str) -> None:
        super().__init__(f"not a formula: {what}")
        Refused.raised = True


def check_text(text: str) -> None:
    """Let pass what consists of numbers, names, operators, parentheses and commas.

    Python folds the Unicode of names before it looks them up (NFKC: ``ⅽ`` becomes ``c``), so of
    what Unicode could fold nothing passes at all, wherever it stands. Tokens are those that
    Python's own tokenizer finds: ``60.`` is a number, and a dot outside of numbers an attribute.

    Raises:
        Refused: it holds anything else.
        SyntaxError: it holds only what makes no expression, such as ``x=5``.
        tokenize.TokenError: its parentheses do not match.
    """
    if not text.isascii():
        for character in text:
            if not character.isascii() and character not in _GREEK and _could_be_code(character):
                raise Refused(repr(character))
    no_formula = ""
    before = before_that = ""
    for kind, token, *_ in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        if kind == tokenize.NAME:
            if not _NAME.fullmatch(token) or keyword.iskeyword(token):
                raise Refused(token)
        elif token in ("[", "]"):
            if token == "[" and _is_indexed(before):
                raise Refused("an index")
            if token == "]" and before_that == "[" and not before.isdigit():
                raise Refused("an index")
        elif token in _NO_FORMULA or kind == tokenize.ERRORTOKEN:
            if token == " ":
                continue
            no_formula = no_formula or token.strip("!")  # before Python 3.12, ! is such a token
        elif kind != tokenize.NUMBER and kind not in _LAYOUT and token not in _OPERATORS:
            raise Refused(token)
        before, before_that = token, before
    if no_formula:
        raise SyntaxError(f"no formula: {no_formula!r}")


def _could_be_code(character: str) -> bool:
    """Whether Python could read it as part of a name, or fold it into ASCII."""
    folded = unicodedata.normalize("NFKC", character)
    return ("a" + character).isidentifier() or any(part.isascii() for part in folded)


def _is_indexed(before: str) -> bool:
    """Whether a bracket after this token is an index. ``0.2[3]`` is none: a repeated decimal."""
    if before[:1].isdigit() or (before[:1] == "." and len(before) > 1):
        return "." not in before
    return before in (")", "]") or before[:1].isalpha() or before[:1] == "_"


def check_code(code: str, known: Container[str], local: Container[str] = ()) -> None:
    """Let pass Python that computes with numbers, symbols and the functions in ``known``.

    ``local`` names what the caller of the parser brought.

    Raises:
        Refused: it holds anything else.
        SyntaxError: it is no Python.
    """
    wrapped: set[int] = set()  # texts that are what a symbol or number is made of
    # ast.walk visits a call before its arguments.
    for node in ast.walk(ast.parse(code.strip(), mode="eval")):
        if not isinstance(node, _NODES):
            raise Refused(type(node).__name__)
        if isinstance(node, ast.Call):
            if node.keywords:
                raise Refused("a keyword")
            if isinstance(node.func, ast.Name) and node.func.id in _TAKE_TEXT:
                wrapped |= {id(argument) for argument in node.args}
        elif isinstance(node, ast.Name):
            if node.id not in known and node.id not in local:
                raise Refused(node.id)
        elif isinstance(node, ast.Constant):
            kind = type(node.value)
            if kind not in (int, float, complex) and not (kind is str and id(node) in wrapped):
                raise Refused(repr(node.value))


def check_compiled(code: str) -> None:
    """Let pass the functions that sympy's ``lambdify`` writes for formulas.

    It writes the names of undefined functions as they are, and an answer can name those.

    Raises:
        Refused: it holds anything else.
    """
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, _COMPILED_NODES):
            raise Refused(type(node).__name__)
        if isinstance(node, ast.Name) and (
            "__" in node.id or (hasattr(builtins, node.id) and node.id not in _HARMLESS_BUILTINS)
        ):
            raise Refused(node.id)


@functools.cache
def _published_names() -> dict[str, Any]:
    """What sympy's parser lets text name: all of sympy and the builtin functions."""
    from sympy import Max, Min

    names: dict[str, Any] = {}
    exec("from sympy import *", names)
    functions = {n: o for n, o in vars(builtins).items() if type(o) is type(len)}
    return {**names, **functions, "max": Max, "min": Min}


@functools.cache
def _known_names() -> dict[str, Any]:
    """What text may name: functions and constants of mathematics, and what formulas are built of."""
    from sympy import FunctionClass

    named = _CONSTANTS | _PLAIN_FUNCTIONS | _BUILDERS
    return {
        name: thing
        for name, thing in _published_names().items()
        if name in named or (isinstance(thing, FunctionClass) and thing.__module__.startswith("sympy.functions."))
    }


@functools.cache
def install() -> None:
    """Guard sympy's parser, for every caller in this process."""
    import importlib

    from sympy.parsing import sympy_parser

    stringify, evaluate = sympy_parser.stringify_expr, sympy_parser.eval_expr
    parse = sympy_parser.parse_expr
    known = _known_names()

    def guarded_stringify(text: str, local: Any, names: Any, transformations: Any) -> str:
        check_text(text)
        code = stringify(text, local, names, transformations)
        check_code(code, known, local)
        return code

    def guarded_evaluate(code: Any, local: Any, names: dict[str, Any]) -> Any:
        return evaluate(code, local, {**known, "__builtins__": {}})

    @functools.wraps(parse)
    def guarded_parse(text: str, *args: Any, **settings: Any) -> Any:
        """``parse_expr`` that does not import all of sympy's names anew for each text."""
        if len(args) < 3 and settings.get("global_dict") is None:
            settings["global_dict"] = dict(_published_names())
        return parse(text, *args, **settings)

    def guarded_compile(code: str, *args: Any, **settings: Any) -> Any:
        check_compiled(code)
        return compile(code, *args, **settings)

    sympy_parser.stringify_expr = guarded_stringify
    sympy_parser.eval_expr = guarded_evaluate
    sympy_parser.parse_expr = guarded_parse
    # By name: sympy.utilities has a function of the module's name.
    lambdify: Any = importlib.import_module("sympy.utilities.lambdify")
    lambdify.compile = guarded_compile
