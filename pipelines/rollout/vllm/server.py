"""The rollout engine ``vllm`` behind HTTP: a ``vllm serve`` on GPUs of its own (``rollout.server``).

The requests are those of vLLM's chat interface, with its additions: token ids in the reply, and
``n`` responses to one prompt, whose images travel once. How to start the server: docs/rollout_vllm.md.

New weights arrive over NCCL, by vLLM's weight-transfer interface: rank 0 of the trainer and the
server's workers are one group, and rank 0 sends each weight as the ranks put it together. A trainer
without a GPU writes a safetensors file instead, which the server (on the same machine) reads.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image

from pipelines.config.schema import ModelConfig
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.model.prompts import model_location
from pipelines.model.sampling import Sampling
from pipelines.ranks.ranks import ranks
from pipelines.rollout.engine import Engine, Name, Response, cut
from pipelines.rollout.vllm.engine import View, check_prompt, image_settings, not_installed, sampling_settings

TIMEOUT_S = 3600.0
"""Longest wait for a reply: a prompt's responses behind all others of its batch."""
ANSWER_S = 10.0
"""Longest wait for the server to say what it is."""
TOGETHER = 128
"""Requests under way at a time from each rank; the server batches them."""


class VLLMServer:
    """A running ``vllm serve`` as the rollout engine.

    Raises:
        UserError: it cannot be reached, or serves another model.
    """

    def __init__(self, policy: Policy) -> None:
        self.url = str(policy.config.rollout.server).rstrip("/")
        self.model = self._served_model(policy.config.model)
        self._transfer: Any = None

    def generate_as(
        self, policy: Policy, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling
    ) -> list[list[Response]]:
        """One list of responses per sample, prompted as ``policy`` does.

        Raises:
            UserError: the server went away, refuses a prompt, or reads it in other tokens.
        """
        with ThreadPoolExecutor(TOGETHER) as pool:
            replies = list(pool.map(lambda s, name: self._ask(policy, s, name, sampling), samples, names))
        found = []
        for sample, reply in zip(samples, replies, strict=True):
            check_prompt(policy, sample, reply.get("prompt_token_ids"))
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            length = len(reply["prompt_token_ids"])
            found.append([_response(policy, choice, length) for choice in choices])
        return found

    def view(self, policy: Policy) -> Engine:
        """The engine asked as ``policy`` asks."""
        return View(self, policy)

    def sync(self, policy: Policy) -> None:
        """Send the policy's weights; every rank calls it."""
        if policy.device.type == "cuda":
            self._send_by_nccl(policy)
        else:
            self._send_by_file(policy)
        if ranks().main:
            for cache in ("prefix", "mm", "encoder"):
                self._post(f"reset_{cache}_cache", None)
        ranks().barrier()

    def sleep(self) -> None:
        """Nothing: the server's GPUs are its own."""

    def close(self) -> None:
        """Leave the server running, ready for the next trainer."""
        if self._transfer is not None and ranks().main:
            self._post("shutdown_weight_transfer_engine", None)

    # -- weights ---------------------------------------------------------------------------------

    def _send_by_nccl(self, policy: Policy) -> None:
        if self._transfer is None:
            self._weights = _Weights(policy)
            self._transfer = self._open_transfer()
        self._weights.policy = policy
        self._transfer.send_weights()
        self._weights.policy = None  # a run that goes back to another checkpoint has another

    def _open_transfer(self) -> Any:
        try:
            package = "vllm.distributed.weight_transfer"
            nccl = importlib.import_module(f"{package}.nccl_engine")
            clients = importlib.import_module(f"{package}.clients")
        except ImportError as error:
            raise not_installed(error) from error
        here, port = _own_address(self.url)
        workers = self._get("get_world_size")["world_size"] if ranks().main else 0
        return nccl.NCCLTrainerWeightTransferEngine.trainer_init(
            nccl.NCCLTrainerInitInfo(rank=ranks().rank, master_address=here, master_port=port, world_size=workers + 1),
            client=clients.HTTPVLLMWeightSyncClient(self.url, TIMEOUT_S),
            source=self._weights,
        )

    def _send_by_file(self, policy: Policy) -> None:
        from safetensors.torch import save_file

        weights = {}
        for name, value in policy.placement.in_use(policy.model):
            if ranks().main:
                # A copy: tied weights share memory, which safetensors does not write.
                weights[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if not ranks().main:
            return
        with tempfile.TemporaryDirectory() as folder:
            save_file(weights, Path(folder) / "model.safetensors")
            call = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self._post("collective_rpc", call)

    # -- HTTP ------------------------------------------------------------------------------------

    def _ask(self, policy: Policy, sample: Sample, name: Name, sampling: Sampling) -> dict[str, Any]:
        settings = sampling_settings(policy, name, sampling)
        return self._post(
            "v1/chat/completions",
            settings
            | {
                "model": self.model,
                "messages": _with_images(policy, sample),
                "mm_processor_kwargs": image_settings(policy) if sample.images else None,
                "max_completion_tokens": settings["max_tokens"],
                "logprobs": True,
                "top_logprobs": 0,
                "return_token_ids": True,
                "skip_special_tokens": False,
            },
        )

    def _served_model(self, model: ModelConfig) -> str:
        wanted = model_location(model)
        served = [(card["id"], card.get("root") or "") for card in self._get("v1/models")["data"]]
        for name, root in served:
            if wanted in (name, root) or Path(wanted).name in (Path(name).name, Path(root).name):
                return name
        raise UserError(
            f"rollout.server: {self.url}",
            f"serves {', '.join(name for name, _ in served)}, not {wanted}.",
            "Start it with the model of model.path (docs/rollout_vllm.md).",
        )

    def _get(self, path: str) -> dict[str, Any]:
        return self._reply(path, None, "GET", ANSWER_S)

    def _post(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return self._reply(path, json.dumps(body).encode() if body else b"", "POST", TIMEOUT_S)

    def _reply(self, path: str, data: bytes | None, method: str, timeout: float) -> dict[str, Any]:
        place = f"rollout.server: {self.url}"
        try:
            request = urllib.request.Request(
                f"{self.url}/{path}", data, {"Content-Type": "application/json"}, method=method
            )
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            fix = "docs/rollout_vllm.md has the command that starts it."
            if error.code == 404:
                fix = "It needs VLLM_SERVER_DEV_MODE=1 in its environment: docs/rollout_vllm.md."
            raise UserError(place, f"answers /{path} with {error.code}: {detail}", fix) from error
        except (OSError, ValueError) as error:  # unreachable, timed out, or no address at all
            raise UserError(
                place,
                f"cannot be reached ({error}).",
                "Start vllm serve first (docs/rollout_vllm.md), or unset rollout.server to run vLLM in this process.",
            ) from error
        return json.loads(text) if text else {}


class _Weights:
    """The policy's weights as vLLM's NCCL transfer reads them, in the precision of ``model.dtype``.

    The server is told names and shapes before the first weight is sent; gathering them takes one pass,
    made once.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy: Policy | None = policy
        self.dtype = getattr(torch, policy.config.model.dtype)
        self._metadata: list[Any] | None = None

    def metadata(self) -> list[Any]:
        """Name, type and shape of each weight, in the order of iteration."""
        if self._metadata is None:
            meta = importlib.import_module("vllm.distributed.weight_transfer.base").ParamMeta
            self._metadata = [meta(name, v.dtype, tuple(v.shape)) for name, v in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        policy = self.policy
        assert policy is not None
        for name, value in policy.placement.in_use(policy.model):
            yield name, value.detach().to(policy.device, self.dtype)


def _with_images(policy: Policy, sample: Sample) -> list[dict[str, Any]]:
    """The chat turn with its images inside, as PNG: the server sees the very pixels."""
    chat = policy.encoder.messages(sample)
    pictures = iter(policy.encoder.images(sample))
    for turn in chat:
        turn["content"] = [
            {"type": "image_url", "image_url": {"url": _data_url(next(pictures))}} if part["type"] == "image" else part
            for part in turn["content"]
        ]
    return chat


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _response(policy: Policy, choice: dict[str, Any], prompt_tokens: int) -> Response:
    logp = [token["logprob"] for token in choice["logprobs"]["content"]]
    return cut(policy, choice["token_ids"], logp, prompt_tokens)


def _own_address(url: str) -> tuple[str, int]:
    """The address of this machine that the server can reach, and a free port."""
    server = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server.hostname, server.port or 80))  # sends nothing; picks the interface
        here = probe.getsockname()[0]
    with socket.socket() as free:
        free.bind(("", 0))
        return here, free.getsockname()[1]
