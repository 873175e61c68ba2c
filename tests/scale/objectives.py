"""Run on every rank by test_deepspeed.py: the gradient of every objective under ZeRO stages, beside ``torch``.

    torchrun --nproc-per-node N objectives.py FOLDER STAGE... [NAME...]

FOLDER is as for updates.py, of which the questions and responses are read: each objective's step is scored for
it once, and both engines read the same scores. Two responses' lengths and a question without an image make ranks
uneven. Names: some objectives only. Prints one JSON line an objective and stage, from rank 0.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from mixed import without_images
from updates import SETTINGS

from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import ROLLOUTS, Rollout, Sample, SampleTable, Scored, read_rows, read_scores, write_rows
from pipelines.model.load import load_policy
from pipelines.ranks import heartbeat
from pipelines.ranks.ranks import ranks
from pipelines.score.scoring import score
from pipelines.update.deepspeed_engine import DeepSpeedTrainer
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent
