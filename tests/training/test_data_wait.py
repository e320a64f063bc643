import logging
import time

import pytest
from csv_rows import column_of

from elas_lightning.data.lanes import TrainStream
from elas_lightning.runner import RunRequest, run
from elas_lightning.training import data_wait
from elas_lightning.training.data_wait import DataWait


def test_warns_once_when_the_loader_is_the_bottleneck(caplog):
    wait = DataWait()
    assert wait.add(9.0, 10.0) == 0.9  # workers start: not judged
    assert wait.add(1.0, 8.0) == 0.125
    assert not caplog.records
    for _ in range(5):
        wait.add(1.0, 8.0)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "waits for its data 12 % of the time" in record.getMessage()
    assert "data.num_workers" in record.getMessage()
    assert "elas data prepare" in record.getMessage()
    assert wait.seconds == 15.0


def test_says_nothing_when_the_model_is_the_bottleneck(caplog):
    wait = DataWait()
    for _ in range(100):
        wait.add(0.09, 1.0)
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_run_with_a_slow_loader_says_so_and_records_it(overlay, tmp_path, monkeypatch, caplog):
    fast = TrainStream.__iter__

    def slow(self):
        for batch in fast(self):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(TrainStream, "__iter__", slow)
    monkeypatch.setattr(data_wait, "JUDGED_AFTER_SECONDS", 0.2)
    result = run(RunRequest(tmp_path / "run", [overlay]))
    assert 0.1 < result.metrics["data_wait_share"] < 1
    shares = column_of(tmp_path / "run/curve.csv", "data_wait_share")
    assert len(shares) == 12
    assert all(share >= 0 for share in shares)
    assert sum("waits for its data" in record.getMessage() for record in caplog.records) == 1
