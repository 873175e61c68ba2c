"""The trackers of trackers.py, each over its own package, which is imported when it is made.

None asks a question, prints, or waits long for a network that is not there.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.tracking.base import TrackedRun
from pipelines.tracking.names import STEP

PROJECT = "vppo"


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder: ``tensorboard --logdir runs`` shows all."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.folder / "tensorboard"
        new = not folder.is_dir()
        # Files are read in the order of their names, which begin with the second they were made in.
        while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        # Later events of a history that was given up are hidden by the purge.
        writer: Any = SummaryWriter(str(folder), purge_step=run.replaced_from)
        self._writer = writer
        if new:
            plain = {k: v for k, v in run.config.items() if v is not None}
            for summary in hparams(plain, {"rollout/accuracy": 0.0}):
                self._writer.file_writer.add_summary(summary)
            settings = "\n".join(f"    {k}: {v}" for k, v in run.config.items())
            self._writer.add_text("config", settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run may be killed at any time, and steps are seconds apart

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: project ``vppo`` or WANDB_PROJECT; WANDB_MODE=offline keeps it in the run's folder.

    Raises:
        UserError: nobody is logged in, and it is not offline.
    """

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False):  # it would ask, in the middle of a run
            raise UserError(
                "run.trackers: wandb",
                "nobody is logged in to Weights & Biases.",
                "Log in (wandb login), or set WANDB_MODE=offline and send it later (wandb sync).",
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.folder.name,
            dir=str(run.folder),
            config=dict(run.config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )
        # Not its own step, which only rises: evaluations come after the steps they are of.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics))

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio: project ``vppo``, on this machine (TRACKIO_DIR) or where TRACKIO_SPACE_ID says."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        with _silent():
            self._run = trackio.init(
                project=PROJECT,
                name=run.id,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        import trackio

        with _silent():
            trackio.finish()


class MLflow:
    """MLflow: experiment ``vppo`` at MLFLOW_TRACKING_URI, or in mlflow.db beside the runs."""

    def __init__(self, run: TrackedRun) -> None:
        for name, value in (
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
            ("MLFLOW_LOGGING_LEVEL", "ERROR"),
        ):
            os.environ.setdefault(name, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or _database(run.folder.parent)
        self._client = MlflowClient(tracking_uri=place)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else self._client.create_experiment(experiment)
        ours = self._client.search_runs([home], filter_string=f"tags.`vppo.run` = '{run.id}'")
        if ours:
            self._id = ours[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"vppo.run": run.id}
        self._id = self._client.create_run(home, tags=tags, run_name=run.folder.name).info.run_id
        params = [Param(name, str(value)[:500]) for name, value in run.config.items()]
        for start in range(0, len(params), 100):  # no more in one request
            self._client.log_batch(self._id, params=params[start : start + 100])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _database(folder: Path) -> str:
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


@contextlib.contextmanager
def _silent() -> Any:
    """Without what a package prints; standard output is ours, and may be read by a program."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
