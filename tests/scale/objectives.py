"""Run on every rank by test_deepspeed.py: the gradient of every objective under ZeRO stages, beside ``torch``.

    torchrun --nproc-per-node N objectives.py FOLDER STAGE... [NAME...]

FOLDER is as for updates.py, of which the questions and responses are read: each objective's step is scored for
it once, and both engines read the same scores. Two responses' lengths and a question without an image make ranks
uneven. Names: some objectives only. Prints one JSON line an objective and stage, from rank 0.
"""

from __future__ import annotations
