"""One run: configuration in, :class:`RunResult` out, which is also what lies on disk afterwards."""

import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from subprocess import Popen
from typing import Any, get_args

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from elas_lightning.configuration import ElasCLI, command_line, quiet_lightning
from elas_lightning.continuation import Beginning, begin, given_checkpoint
from elas_lightning.errors import NOT_WRITABLE, UserError
from elas_lightning.files import not_written
from elas_lightning.layout import RESULT_NAME, RUNS, Before, checkpoint_folder
from elas_lightning.nn.account import Device, Precision, TrainingStep, count_parameters, flops_per_token, memory_account
from elas_lightning.nn.ffn import ffn_choice, ffn_path
from elas_lightning.processes import Occupied, handed_over, handing_over, hold, is_first_rank
from elas_lightning.result import RunResult
from elas_lightning.training.checkpoints import newest_usable, take_up
from elas_lightning.training.hardware import describe_environment, peak_flops
from elas_lightning.training.interruption import Interrupted, RunEnded
from elas_lightning.training.monitors import why_it_ended
from elas_lightning.training.optimizers import optimizer_state_entries

_VALIDATED = ("val_loss", "val_perplexity", "val_perplexity_galore_protocol", "val_bits_per_byte", "val_batches")
# a process that was told to stop and is still saving itself
_PATIENCE_SECONDS = 60.0
# a rank that was refused says so, and its connections close a moment before its process ends
_LAST_WORDS_SECONDS = 3.0
# by the beginning of the precision's name
_DTYPES = {"bf16": "bfloat16", "16": "float16", "64": "float64"}


@dataclass(frozen=True)
class RunRequest:
    """A run to be made.

    Args:
        directory: Where it goes; also its name.
        overlays: YAML files, later ones over earlier ones.
        overrides: Dotted keys over the overlays.
    """

    directory: Path
    overlays: Sequence[Path]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What a person types to make the run again."""
        return shlex.join(["elas", "fit", *command_line(self.overlays, self.overrides)])


def run(request: RunRequest, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Make a run, or go on with it from its checkpoint, or return its result if it is already there.

    The checkpoint is removed once the run is complete: a sweep of a hundred runs keeps figures, not weights.

    Args:
        request: What to run.
        callbacks: Added to the run's own, for progress and pruning.

    Raises:
        UserError: The configuration cannot be run.
        Interrupted: The user stopped it; it has saved itself.
    """
    if (request.directory / RESULT_NAME).exists():
        return RunResult.read(request.directory)
    first = is_first_rank()
    with hold(request.directory, _PATIENCE_SECONDS) if first else nullcontext():
        if (request.directory / RESULT_NAME).exists():
            return RunResult.read(request.directory)
        folder = checkpoint_folder(request.directory)
        resume = take_up(folder) if first else newest_usable(folder)
        # a sweep shows its own progress
        own = {"trainer.default_root_dir": str(request.directory), "trainer.enable_progress_bar": False}
        overrides = {**request.overrides, **own}
        quiet_lightning()
        cli = ElasCLI(command_line(request.overlays, overrides), run=False, callbacks=callbacks)
        result = execute(cli, ckpt_path=resume, request=request)
        shutil.rmtree(folder, ignore_errors=True)
    return result


class RunCommand(ElasCLI):
    """``elas fit`` and ``elas validate``.

    After construction ``result`` is the outcome of a fit.
    """

    result: RunResult | None = None
    _beginning: Beginning
    _before: Before

    def __init__(self, args: list[str] | None = None) -> None:
        with ExitStack() as self._held:
            try:
                super().__init__(args, run=True)
            except MisconfigurationException as error:  # Lightning's, of settings that only the loop looks at
                self._leave_nothing()
                raise UserError(f"trainer: {error}") from error
            except Occupied:  # whatever is new there is the other process's
                raise
            except UserError:
                self._leave_nothing()
                raise

    def choose_directory(self, given: str | None) -> Path:
        """The directory of the run that ``elas fit`` goes on with, or a new one."""
        self._before = Before(Path(given) if given else RUNS / str(self.subcommand))
        if given:
            self.directory = Path(given)  # already here, for a beginning that is refused
        if self.subcommand != "fit":
            handed = handed_over()
            directory = Path(handed["directory"]) if handed else super().choose_directory(given)
            if is_first_rank():
                self._held.enter_context(hold(directory))
            self._held.enter_context(handing_over({"directory": str(directory), "checkpoint": None}))
            return directory
        self._beginning = begin(self.resolved, self._held)
        return self._beginning.directory

    def _leave_nothing(self) -> None:
        """Take back what was made for a run that is refused before its first step."""
        begun = hasattr(self, "trainer") and self.trainer.global_step > 0
        if hasattr(self, "directory") and is_first_rank() and not begun:
            self._before.restore(self.directory)

    def before_validate(self) -> None:
        """Refuse a checkpoint that is not given, not there or cannot be read.

        Raises:
            UserError: The path is missing or wrong, or the file is.
        """
        given = self.config["validate"]["ckpt_path"]
        if given is None:
            raise UserError("validate measures a checkpoint: give --ckpt_path, a *.ckpt file or the directory of a run")
        self.config_init["validate"]["ckpt_path"] = str(given_checkpoint(given))

    def fit(self, **kwargs: Any) -> None:
        """Train, validate at the end, leave a result file; a finished run is left as it is."""
        if self._beginning.finished:
            self.result = RunResult.read(self.directory)
            if self.trainer.is_global_zero:
                print(f"{self.directory} is finished")
            return
        self.result = execute(self, ckpt_path=self._beginning.checkpoint)


def execute(cli: ElasCLI, ckpt_path: str | Path | None = None, request: RunRequest | None = None) -> RunResult:
    """Train what ``cli`` holds to its last step, validate, and write the result into its directory.

    A run that ends early (``diverged``, ``pruned``) is a result like any other.

    Raises:
        UserError: The configuration cannot be run, or a checkpoint not be read or written.
        Interrupted: Stopped by a signal.
    """
    started = _now()
    state, reason = "complete", None
    try:
        with cli.stop.listening(cli.trainer):
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
            reason = why_it_ended(cli.trainer)
            if cli.recorder.last_validated_step != cli.trainer.global_step:
                cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    except RunEnded as end:
        state, reason = end.state, end.reason
    except BaseException as error:
        launcher = cli.trainer.strategy.launcher
        if launcher is not None and not (isinstance(error, Interrupted) and error.together):
            # what a rank that has gone does to those that wait for it
            refused = isinstance(error, RuntimeError) and _has_refused(getattr(launcher, "procs", []))
            launcher.kill(signal.SIGKILL)  # the other ranks would wait for this one
            if refused:
                raise UserError("another process of the run was refused: the line that it printed says why") from error
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:  # a logger's
            raise not_written(Path(str(error.filename or cli.directory)), error) from error
        raise
    result = _collect(cli, request, state, reason, started)
    if cli.trainer.is_global_zero:
        result.write(cli.directory)
    return result


def _has_refused(ranks: Sequence[Popen[bytes]]) -> bool:
    """Whether one of the ranks that this one has started ends, here and now, with the exit code of wrong input."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while None in (codes := [rank.poll() for rank in ranks]) and 2 not in codes and time.monotonic() < deadline:
        time.sleep(0.02)
    return 2 in codes


def _collect(cli: ElasCLI, request: RunRequest | None, state: str, reason: str | None, started: str) -> RunResult:
    model, trainer = cli.model, cli.trainer
    device = trainer.strategy.root_device  # not the model's, which Lightning has moved to the CPU by now
    tokens = cli.datamodule.batch_size * cli.datamodule.sequence_length
    backend = ffn_choice(
        model.config, device, tokens, _dtype(str(trainer.precision)), compiled=bool(model.hparams["compile"])
    )
    resolved = cli.resolved
    command = request.command if request else shlex.join(["elas", *cli.arguments])
    return RunResult(
        run=cli.directory.name,
        state=state,
        reason=reason,
        seed=int(resolved["seed_everything"]),
        config=resolved,
        overlays=[str(p) for p in request.overlays] if request else [],
        overrides=dict(request.overrides) if request else {},
        metrics=_metrics(cli, state),
        backend={**asdict(backend), "ffn": ffn_path(model.config, device, backend)},
        data={**cli.datamodule.description(), "unigram_perplexity": cli.datamodule.unigram_perplexity()},
        environment={
            **describe_environment(device, command),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "peak_flops": peak_flops(device, str(trainer.precision)),
        },
        started=started,
        finished=_now(),
    )


def _dtype(precision: str) -> str:
    """The arithmetic of a precision as Lightning names it."""
    return next((dtype for key, dtype in _DTYPES.items() if precision.startswith(key)), "float32")


def _metrics(cli: ElasCLI, state: str) -> dict[str, Any]:
    recorder, config = cli.recorder, cli.model.config
    # of a run that ended early these are of an earlier step
    validated = cli.trainer.callback_metrics if state == "complete" else {}
    rate = recorder.tokens / recorder.seconds if recorder.seconds else None
    account = flops_per_token(config, cli.datamodule.sequence_length)
    flops = account["total"]
    peak = peak_flops(cli.trainer.strategy.root_device, str(cli.trainer.precision))
    return {
        **{name: validated[name].item() if name in validated else None for name in _VALIDATED},
        "train_loss": recorder.last_train_loss,
        "tokens": recorder.tokens,
        "seconds": recorder.seconds,
        "tokens_per_second": rate,
        "data_wait_share": recorder.data_wait.seconds / recorder.seconds if recorder.seconds else None,
        "model_flops_utilisation": rate * flops / (peak * cli.trainer.world_size) if rate and peak else None,
        "parameters": count_parameters(config)["total"],
        "flops_per_token": flops,
        "flops_per_token_24": account["flops_with_24"],
        "peak_memory_bytes": recorder.peak_memory.read() if recorder.peak_memory else None,
        "account": _expected_bytes(cli),
        "loss_spikes": recorder.spikes.count,
        "telemetry_seconds": recorder.telemetry_seconds,
        "energy_joules": recorder.joules,
        "tokens_per_joule": recorder.tokens / recorder.joules if recorder.joules else None,
    }


def _expected_bytes(cli: ElasCLI) -> dict[str, int] | None:
    """The memory account of the run's own micro-batch; none for a precision or device that it does not know."""
    precision, device = str(cli.trainer.precision), cli.trainer.strategy.root_device.type
    if precision not in get_args(Precision) or device not in get_args(Device):
        return None
    step = TrainingStep(
        cli.datamodule.batch_size,
        cli.datamodule.sequence_length,
        precision,  # type: ignore[arg-type]
        device,  # type: ignore[arg-type]
        cli.model.config.checkpointing,
    )
    remembered = optimizer_state_entries(cli.model.optimizer, cli.model.config)["total"]
    account = memory_account(cli.model.config, step, remembered)
    return {name: size for name, size in account.items() if isinstance(size, int)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
