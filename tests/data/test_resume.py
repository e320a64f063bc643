"""The promise that matters: after a resume the trainer sees the very tokens it would have seen without."""

import lightning as L
import pytest
import torch

from elas_lightning.errors import UserError

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

STEPS, CUT = 260, 231  # beyond the first epoch of a lane (some 55 batches a lane, four lanes)


class Recorder(L.LightningModule):
    """Learns nothing and notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        assert "cursor" not in batch
        self.seen.append(batch["input_ids"].tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        assert batch["labels"].shape[1] == 16

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, steps, tmp_path, resume_from=None):
    module = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        # Two micro-batches a step, and validations in between, which must not move the place.
        accumulate_grad_batches=2,
        val_check_interval=100,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
        num_sanity_val_steps=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True if resume_from else None)
    return trainer, module.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6.6 on torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batching", ["truncate", "pack"])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(make_data, tmp_path, batching, workers):
    _, whole = fit(make_data(batching=batching), STEPS // 2, tmp_path)
    trainer, before = fit(make_data(batching=batching, num_workers=workers), CUT // 2, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = make_data(batching=batching, num_workers=workers)
    _, after = fit(data, STEPS // 2, tmp_path, resume_from=tmp_path / "last.ckpt")
    assert len(before) == CUT // 2 * 2
    assert before + after == whole
    place = torch.load(tmp_path / "last.ckpt", weights_only=True)["C4DataModule"]["places"][0]
    assert place["epoch"] > 0
    assert place["block"] > 0


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_checkpoint_of_other_data_is_refused(make_data, tmp_path):
    trainer, _ = fit(make_data(), 2, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"data\.seed is 1, but the checkpoint was written with 0"):
        fit(make_data(seed=1), 4, tmp_path, resume_from=tmp_path / "last.ckpt")
