"""A model's chat template: Jinja from its folder, hence somebody else's program.

Before anything else is done with the model it is tried in a process of its own, which may take little
time and memory: one that loops, or makes gigabytes of text, is told by name. What passed is rendered in
this process, as every prompt is.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import warnings
from collections.abc import Callable
from typing import Any

from pipelines.errors import UserError

CPU_S = 2
"""Processor seconds for a few short chats; a template takes milliseconds."""
WALL_S = 300.0
"""A far backstop: a suspended or starved process is not the template's fault."""
MEMORY = 2**29
"""Bytes that rendering them may take."""
LONGEST = 2**17
"""Characters of a chat of a few words."""

Chat = list[dict[str, Any]]
_IMAGE = {"type": "image"}
_QUESTION: dict[str, Any] = {"type": "text", "text": "What does the picture show?"}
_MARK = "It shows a cat"
_FIX = "The template is chat_template.jinja, or in tokenizer_config.json or processor_config.json."


def render(processor: Any, chat: Chat, *, ask: bool = True) -> str:
    """The chat's text. A start token that the tokenizer puts in front as well is left to it.

    Args:
        ask: end where the model begins to answer.

    Raises:
        ValueError: the template refuses the chat.
    """
    from jinja2 import TemplateError

    try:
        text: str = processor.apply_chat_template(chat, add_generation_prompt=ask, tokenize=False)
    except (
        TemplateError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise ValueError(f"the chat template fails ({_said(error)})") from error
    if len(text) > LONGEST + 100 * sum(len(str(turn)) for turn in chat):
        raise ValueError(f"the chat template makes {len(text):,} characters of it")
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text


def turn_end(processor: Any) -> int | None:
    """The special token by which the template ends the model's turn; None if it has none."""
    asked, answered = [{"role": "user", "content": [_QUESTION]}], {"role": "assistant"}
    for content in ([{"type": "text", "text": _MARK}], _MARK):  # some take one form, some the other
        with contextlib.suppress(ValueError):
            text = render(processor, [*asked, answered | {"content": content}], ask=False)
            _, found, rest = text.rpartition(_MARK)
            if found:
                tokenizer = processor.tokenizer
                ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"]
                special = tokenizer.added_tokens_decoder
                return ids[0] if ids and ids[0] in special and special[ids[0]].special else None
    return None


def check_system(processor: Any, chat: Chat, system: str) -> None:
    """See that the template shows the system's turn of a chat.

    Raises:
        UserError: it refuses it, or leaves its text out without a word.
    """
    try:
        shown, problem = system.strip() in render(processor, chat), "leaves a system's turn out"
    except ValueError as error:
        shown, problem = False, f"takes no system's turn: {error}"
    if not shown:
        raise UserError(
            f"system_prompt {system[:60]!r}",
            f"the model's chat template {problem}.",
            "Say it in the user's turn: data.instruction with {problem} where the question goes.",
        )


def check(processor: Any, where: str) -> None:
    """Try the processor's chat template.

    Args:
        where: the model, for messages.

    Raises:
        UserError: it has none, or it fails, loops or makes far too much text.
    """
    if not getattr(processor, "chat_template", None):
        raise UserError(
            f"model.path {where}",
            "has no chat template.",
            "Put the family's chat_template.jinja into the folder, or take the instruct model.",
        )
    chats: list[Chat] = [
        [{"role": "user", "content": [*images, _QUESTION, _QUESTION]}] for images in ([_IMAGE], [], [_IMAGE, _IMAGE])
    ]
    chats.append([{"role": "system", "content": [_QUESTION]}, *chats[0]])
    problems = json.loads(_in_child(lambda: json.dumps([_problem(processor, c) for c in chats])))
    # One refused of several is for the question that is asked so, if there is any.
    found = problems if isinstance(problems, str) else problems[0]
    if found:
        raise UserError(f"model.path {where}", f"{found}.", _FIX)


def _problem(processor: Any, chat: Chat) -> str | None:
    try:
        render(processor, chat)
    except ValueError as error:
        return str(error)
    return None


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _in_child(work: Callable[[], str]) -> str:
    """What ``work`` gives, a short JSON text, in a copy of this process with limits.

    What goes over them is a JSON text that says so.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # of threads, which a copy does not have: rendering needs none
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            _limit()
            os.write(writer, work().encode()[:4096])
        finally:
            os._exit(0)
    os.close(writer)
    try:
        answered, _, _ = select.select([reader], [], [], WALL_S)
        text = os.read(reader, 65536).decode() if answered else ""
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return text or json.dumps(
        f"the chat template does not end within {CPU_S} s of computing, or takes more than {MEMORY / 2**20:.0f} MiB"
    )


def _limit() -> None:
    """Little time and memory for what this process does from now on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    with contextlib.suppress(OSError, ValueError):  # where the system tells, and limits, its size
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
