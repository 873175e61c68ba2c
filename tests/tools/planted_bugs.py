"""Plant bugs, one at a time, into a copy of the source: ``make regression`` must turn red for each.

    python tests/tools/planted_bugs.py [--clean 10] [--only NAME ...] [--list]

A bug is one piece of text in place of another, which has to be found exactly once. The copy is then
checked by ``make regression`` as it is; so is a copy without a bug, ``--clean`` times, which must stay
green. Exit code 0: all as demanded; 1: not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("pipelines", "evals", "vppo_cli", "configs", "Makefile", "pyproject.toml", "constraints-cpu.txt")


@dataclass(frozen=True)
class Bug:
    """``bad`` in place of ``good`` in one file."""

    name: str
    file: str
    good: str
    bad: str

    def plant(self, folder: Path) -> None:
        """Change the copy.

        Raises:
            SystemExit: the text is not there, or more than once: nothing would be tested.
        """
        path = folder / self.file
        text = path.read_text()
        if text.count(self.good) != 1:
            raise SystemExit(f"{self.name}: found {text.count(self.good)} times in {self.file}:\n{self.good}")
        path.write_text(text.replace(self.good, self.bad))


BUGS = (
    # -- rollout
    Bug(
        "dynamic sampling keeps every group",
        "pipelines/rollout/groups.py",
        "if informative or not settings.dynamic_sampling:",
        "if True:",
    ),
    Bug(
        "rewards of a group in reverse order",
        "pipelines/rollout/groups.py",
        "[next(graded) for _ in responses]",
        "[next(graded) for _ in responses][::-1]",
    ),
    Bug(
        "samples at another temperature than it records",
        "pipelines/model/sampling.py",
        "token_B = draw(truncate(logp_BV, ",
        "token_B = draw(truncate((logp_BV / 0.9).log_softmax(-1), ",
    ),
    Bug("ignores top-p", "pipelines/model/sampling.py", "if top_p < 1:", "if top_p < 0:"),
    Bug(
        "responses lose their end token",
        "pipelines/rollout/engine.py",
        "length = ends[0] + 1 if ends else len(ids)",
        "length = ends[0] if ends else len(ids)",
    ),
    Bug(
        "engine keeps the starting weights",
        "pipelines/rollout/hf.py",
        "        self.policy = policy\n",
        "        import copy\n\n"
        "        cls = type(self)\n"
        "        cls.first = getattr(cls, 'first', None) or copy.deepcopy(policy.model)\n"
        "        self.policy = copy.copy(policy)\n"
        "        self.policy.model = cls.first\n",
    ),
    # -- score
    Bug(
        "perturbed image is the original for a quarter",
        "pipelines/score/scoring.py",
        "    if not sample.images:\n        return prompt\n",
        "    if not sample.images or name[1] % 4 == 0:\n        return prompt\n",
    ),
    Bug(
        "KL the other way round",
        "pipelines/score/scoring.py",
        "    statistics = view_statistics(config, views, policy, jsd=True if VIEWS in holds else None)\n",
        "    other = Views(views.token_N, views.perturbed_ND, views.hidden_ND)\n"
        "    reverse = view_statistics(config, other, policy).kl\n"
        "    statistics = view_statistics(config, views, policy, jsd=True if VIEWS in holds else None)\n"
        "    statistics = type(statistics)(**(vars(statistics) | {'kl': reverse}))\n",
    ),
    Bug(
        "filter keeps what looks least",
        "pipelines/vppo.py",
        "score_BT = _wide(perception_BT).masked_fill(",
        "score_BT = (-_wide(perception_BT)).masked_fill(",
    ),
    Bug(
        "kept tokens shifted by one",
        "pipelines/score/scoring.py",
        "keep = [k[: len(p)] for k, p in zip(",
        "keep = [[False, *k][: len(p)] for k, p in zip(",
    ),
    Bug(
        "old log-probs of the perturbed view",
        "pipelines/score/scoring.py",
        "split_like(statistics.logp, responses)",
        "split_like(statistics.logp_perturbed, responses)",
    ),
    Bug(
        "old log-probs shifted by one",
        "pipelines/score/scoring.py",
        "old_logp=logp[index] if",
        "old_logp=[[x[0], *x[:-1]] for x in logp[index]] if",
    ),
    Bug(
        "old log-probs of earlier groups by the new policy",
        "pipelines/score/scoring.py",
        "old_logp=logp[index] if group.step == step else group.logp",
        "old_logp=logp[index]",
    ),
    # -- update
    Bug(
        "advantage with the wrong sign",
        "pipelines/vppo.py",
        "reward_PG - reward_PG.mean(-1, keepdim=True)",
        "reward_PG.mean(-1, keepdim=True) - reward_PG",
    ),
    Bug(
        "advantage over the batch, not the group",
        "pipelines/vppo.py",
        "reward_PG - reward_PG.mean(-1, keepdim=True)",
        "reward_PG - reward_PG.mean()",
    ),
    Bug(
        "gradient uphill",
        "pipelines/update/torch_engine.py",
        "        loss.backward()\n",
        "        (-loss).backward()\n",
    ),
    Bug(
        "shaping not applied",
        "pipelines/objectives/vppo.py",
        "advantage=shaping(batch, settings) * batch.adv_B",
        "advantage=batch.adv_B",
    ),
    Bug(
        "shaping upside down",
        "pipelines/vppo.py",
        "z_B = normalized_dependency(dependency_B, low, high)\n",
        "z_B = 1 - normalized_dependency(dependency_B, low, high)\n",
    ),
    Bug(
        "mean per response, not per token",
        "pipelines/objectives/dapo.py",
        "settings.clip_low, settings.clip_high, settings.loss_average",
        "settings.clip_low, settings.clip_high, 'sequence'",
    ),
    Bug(
        "clipping widths swapped",
        "pipelines/vppo.py",
        "ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)",
        "ratio_BT.clamp(1.0 - clip_high, 1.0 + clip_low)",
    ),
    Bug(
        "last micro-batch without gradient",
        "pipelines/update/torch_engine.py",
        "            self._backward(loss * counts, last=number == len(mine))\n",
        "            if number < len(mine) or number == 1:\n"
        "                self._backward(loss * counts, last=number == len(mine))\n",
    ),
    Bug(
        "every fourth optimizer step skipped",
        "pipelines/update/torch_engine.py",
        "        self.optimizer.step()\n",
        "        if self.updates % 4 != 3:\n            self.optimizer.step()\n",
    ),
    Bug(
        "learning rate ten times too high",
        "pipelines/update/torch_engine.py",
        'group["lr"] = rate\n',
        'group["lr"] = 10 * rate\n',
    ),
    Bug(
        "gradients not clipped",
        "pipelines/update/torch_engine.py",
        "clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)",
        "clip_grads_with_norm_(parameters, 1e9, norm)",
    ),
    # -- what only a run shows
    Bug(
        "scores by the starting weights",
        "pipelines/live.py",
        "        policy = self.policy(version)\n        self._rest()\n        if isinstance(",
        "        self.policy(version)\n        policy = load_policy(self.config)\n        self._rest()\n"
        "        if isinstance(",
    ),
    Bug(
        "evaluates the starting weights",
        "evals/stage.py",
        "lambda: engine(live, ask.step, asked",
        "lambda: engine(live, 0, asked",
    ),
    Bug(
        "evaluates the weights of the last checkpoint but one",
        "evals/stage.py",
        "lambda: engine(live, ask.step, asked",
        "lambda: engine(live, ask.step // 8 * 4, asked",
    ),
    Bug(
        "updates after the sixth do nothing",
        "pipelines/update/torch_engine.py",
        "        self.optimizer.step()\n",
        "        if self.updates < 6:\n            self.optimizer.step()\n",
    ),
    Bug(
        "the run's surplus is used twice",
        "pipelines/rollout/groups.py",
        "write_rows(out / SURPLUS, Rollout, surplus)",
        "write_rows(out / SURPLUS, Rollout, surplus or used[:1])",
    ),
)


def check(folder: Path) -> tuple[int, str, float]:
    """``make regression`` in a copy of the source: exit code, what it printed, seconds."""
    began = time.monotonic()
    venv = sys.prefix
    done = subprocess.run(
        ["make", "-o", f"{venv}/.ready", "regression", f"VENV={venv}"],
        cwd=folder,
        check=False,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout, time.monotonic() - began


def copied(folder: Path) -> Path:
    """A copy of the source."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def reason(printed: str) -> str:
    """What turned it red, in a line."""
    lines = printed.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("regression"):
            more = next((x.strip() for x in lines[place + 1 :] if x.startswith(" ")), "")
            return f"{line.removeprefix('regression').strip()}: {' '.join(more.split())}"
        if line.startswith("error"):
            return line
    return lines[-2] if len(lines) > 1 else "nothing printed"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clean", type=int, default=1, help="runs without a bug")
    parser.add_argument("--only", nargs="*", help="bugs whose name holds one of these")
    parser.add_argument("--list", action="store_true", help="name the bugs, plant none")
    asked = parser.parse_args()
    bugs = [b for b in BUGS if asked.only is None or any(part in b.name for part in asked.only)]
    if asked.list:
        print("\n".join(f"{bug.file:<24} {bug.name}" for bug in bugs))
        return 0
    failures = 0
    for bug in [*bugs, *[None] * asked.clean]:
        with tempfile.TemporaryDirectory(prefix="planted-") as temporary:
            folder = copied(Path(temporary))
            if bug:
                bug.plant(folder)
            code, printed, seconds = check(folder)
        as_demanded = (code != 0) == (bug is not None)
        failures += not as_demanded
        colour = "red" if code else "green"
        label = bug.name if bug else "no bug"
        why = reason(printed) if code else ""
        print(f"{'' if as_demanded else 'WRONG  '}{label:<52}{colour:<6}{seconds:5.0f} s  {why}", flush=True)
        if not as_demanded:
            print(printed, flush=True)
    print(
        f"{len(bugs)} bugs, {asked.clean} times none: "
        + (f"{failures} not as demanded" if failures else "all as demanded")
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
