"""What a run came to, as an object and as ``result.json``."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elas_lightning.errors import UserError
from elas_lightning.file_fields import RESULT_FIELDS, wrong_field
from elas_lightning.files import write_atomically
from elas_lightning.layout import RESULT_NAME


@dataclass(frozen=True)
class RunResult:
    """What a run came to. ``state`` is ``complete``, ``diverged``, ``pruned`` or ``failed``; ``reason`` says why.

    A run that a callback (``EarlyStopping``) ended before its last step is ``complete``, too, and has a ``reason``.

    ``metrics`` holds ``val_loss`` (nats a token), ``val_perplexity``, ``val_perplexity_galore_protocol``,
    ``val_bits_per_byte``, ``val_batches``, ``train_loss``, ``tokens`` (targets trained on), ``seconds`` (training
    without validation), ``tokens_per_second``, ``model_flops_utilisation``, ``parameters``, ``flops_per_token``
    (training, forward and backward), ``flops_per_token_24`` (with 2:4 products at half), ``peak_memory_bytes``,
    ``account`` (the bytes that ``memory_account`` expects of a micro-batch: ``weights``, ``gradients``,
    ``optimizer``, ``weight_copies``, ``activations``, ``logits``, ``recomputed``, ``total``), ``loss_spikes``
    (``training/spikes.py``), ``telemetry_seconds`` (since the run was last taken up), ``energy_joules`` (all
    GPUs, training without validation) and ``tokens_per_joule``, ``data_wait_share`` (of ``seconds``,
    spent waiting for the loader); ``None`` where not measured.
    """

    run: str
    state: str
    reason: str | None
    seed: int
    config: dict[str, Any]
    overlays: list[str]
    overrides: dict[str, Any]
    metrics: dict[str, Any]
    backend: dict[str, str]
    data: dict[str, Any]
    environment: dict[str, Any]
    started: str
    finished: str

    def write(self, directory: Path) -> None:
        """Write ``result.json``, whole or not at all."""
        text = json.dumps(finite(asdict(self)), indent=1)
        write_atomically(directory / RESULT_NAME, lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, directory: Path) -> "RunResult":
        """Read ``result.json``.

        Raises:
            UserError: The file is missing or is not a result.
        """
        path = directory / RESULT_NAME
        try:
            content = json.loads(path.read_text())
            result = cls(**content)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete {directory} to run it again") from error
        if wrong := wrong_field(content, RESULT_FIELDS):
            raise UserError(f"{path}: {wrong}; correct it, or delete {directory} to run it again")
        return result


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity; both become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
