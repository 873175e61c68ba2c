"""lm-eval's own command line, which then also knows the model ``vppo``.

lm-eval looks a model up before it imports what a task names, and has no entry point for models of
other packages; so this imports it first. Without ``--include_path`` it finds the package's tasks.
Everything else is lm-eval's::

    python -m evals.lm_eval --tasks vppo_geo3k --model vppo --model_args pretrained=tiny

For lm-eval's own command, and for test sets of one's own, ``tasks`` prints the folder to include, or makes one::

    python -m evals.lm_eval tasks
    python -m evals.lm_eval tasks my_tasks --config my.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipelines.errors import UserError


def main() -> None:
    """Run lm-eval; expected errors end it with status 2 and without a traceback."""
    from evals.lm_eval import tasks_folder

    arguments = sys.argv[1:]
    if arguments[:1] == ["tasks"]:
        _ended_well(lambda: tasks_folder.main(arguments[1:]))
        return
    if len(arguments) > 1 and not any(one.startswith("--inc") for one in arguments):
        sys.argv += ["--include_path", str(tasks_folder.TASKS)]
    try:
        from lm_eval.__main__ import cli_evaluate

        import evals.lm_eval.functions  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        print("lm-eval is not installed: pip install 'lm-eval>=0.4.13'.", file=sys.stderr)
        sys.exit(2)
    _ended_well(cli_evaluate)


def _ended_well(work: Callable[[], None]) -> None:
    try:
        work()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
