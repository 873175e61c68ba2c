"""lm-eval's own command line, which then also knows the model ``vppo``.

lm-eval looks a model up before it imports what a task names, and has no entry point for models of
other packages; so this imports it first. Everything else is lm-eval's::

    python -m evals.lm_eval --include_path evals/lm_eval/tasks --tasks vppo_geo3k --model vppo \\
        --model_args pretrained=tiny
"""

from __future__ import annotations

import sys

from pipelines.errors import UserError


def main() -> None:
    """Run lm-eval; expected errors end it with status 2 and without a traceback."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import evals.lm_eval.functions  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        print("lm-eval is not installed: pip install 'lm-eval>=0.4.13'.", file=sys.stderr)
        sys.exit(2)
    try:
        cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
