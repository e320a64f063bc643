import inspect
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from batches import train_on_ids
from jsonargparse import ArgumentParser

from elas_lightning.data import C4DataModule
from elas_lightning.errors import UserError

# Two workers are two too many on a machine of one core, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

OVERLAYS = Path(__file__).parents[2] / "experiments/data"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "web"}, r"data\.source='web' is not known; choose one of pydocs, c4, local, tokens"),
        ({"batching": "pad"}, r"data\.batching='pad' is not known; choose one of truncate, pack"),
        ({"sequence_length": 1}, r"data\.sequence_length=1 is too small; it must be at least 2"),
        ({"batch_size": 0}, r"data\.batch_size=0 is too small"),
        ({"num_workers": -1}, r"data\.num_workers=-1 is too small"),
        ({"lanes": 0}, r"data\.lanes=0 is too small"),
        ({"shuffle_block": 0}, r"data\.shuffle_block=0 is too small"),
        ({"validation_tokens": 0}, r"data\.validation_tokens=0 is too small"),
        ({"validation_batch_size": 0}, r"data\.validation_batch_size=0 is too small"),
    ],
)
def test_arguments_out_of_range(make_data, change, message):
    with pytest.raises(UserError, match=message):
        make_data(**change)


def test_more_lanes_than_shards(make_data):
    with pytest.raises(UserError, match=r"data\.lanes=8 is more than the 4 training shards of .*set it to 4 or less"):
        make_data(lanes=8).prepare_data()


def test_workers_that_cannot_share_the_lanes(make_data):
    with pytest.raises(UserError, match=r"data\.num_workers=3 cannot share the 4 lanes .*choose one of 0, 1, 2, 4"):
        make_data(num_workers=3).setup("fit")


def test_ranks_that_cannot_share_the_lanes(make_data, monkeypatch):
    monkeypatch.setattr("elas_lightning.data.module.rank_and_world_size", lambda: (0, 3))
    with pytest.raises(UserError, match=r"data\.lanes=4 cannot be shared by 3 ranks; .*divides it \(1, 2, 4\)"):
        make_data().setup("fit")


@pytest.mark.usefixtures("no_network")
def test_local_shards_need_no_network(make_data):
    data = make_data()
    data.prepare_data()
    data.setup("fit")
    assert len(train_on_ids(data, 3)) == 3
    assert data.unigram_perplexity() > 1


def test_description_is_plain_and_complete(make_data):
    description = make_data().description()
    assert description["source"] == "local"
    assert set(description) >= {"fingerprint", "tokenizer", "sequence_length", "batching", "seed", "vocab_size"}
    assert yaml.safe_load(yaml.safe_dump(description)) == description


@pytest.mark.parametrize("batching", ["truncate", "pack"])
@pytest.mark.parametrize("cut", [0, 1, 7, 30, 250])
def test_going_on_from_a_state_repeats_and_skips_nothing(make_data, batching, cut, tmp_path):
    whole = train_on_ids(make_data(batching=batching), cut + 10)
    first = make_data(batching=batching)
    assert train_on_ids(first, cut) == whole[:cut]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_data(batching=batching, num_workers=2)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert train_on_ids(second, 10) == whole[cut:]
    assert cut < 250 or second.state_dict()["places"][0]["epoch"] > 0


@pytest.mark.parametrize("overfit", [0, 3])
def test_a_limited_epoch_is_gone_on_from_unless_it_is_to_be_seen_again(make_data, overfit):
    class Training:
        training, overfit_batches = True, overfit

    data = make_data()
    data.trainer = Training()
    loader = data.train_dataloader()
    epochs = [[data.on_after_batch_transfer(b, 0)["input_ids"].tolist() for b in islice(loader, 3)] for _ in "ab"]
    whole = train_on_ids(make_data(), 6)
    assert epochs == [whole[:3], whole[:3] if overfit else whole[3:]]


def test_the_place_does_not_move_outside_training(make_data):
    class Validating:
        training = False

    data = make_data()
    data.trainer = Validating()
    before = data.state_dict()
    train_on_ids(data, 3)
    assert data.state_dict() == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"sequence_length": 8}, "sequence_length"),
        ({"batching": "truncate"}, "batching"),
        ({"lanes": 2}, "lanes"),
        ({"shuffle_block": 6}, "shuffle_block"),
    ],
)
def test_a_place_in_another_order_is_refused(make_data, change, field):
    state = make_data().state_dict()
    with pytest.raises(
        UserError, match=rf"^data\.{field} is .*, but the checkpoint was written with .*start a new run$"
    ):
        make_data(**change).load_state_dict(state)


def test_a_place_in_another_corpus_or_tokenizer_is_refused(make_data):
    for field in ("fingerprint", "tokenizer"):
        state = make_data().state_dict()
        state["signature"][field] = "other"
        with pytest.raises(UserError, match=rf"data\.{field} is "):
            make_data().load_state_dict(state)


def test_validation_needs_no_place_but_the_same_ids(make_data):
    state = make_data().state_dict()
    other = make_data(sequence_length=8, batching="truncate")
    other.trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"))
    before = other.state_dict()
    other.load_state_dict(state)
    assert other.state_dict() == before
    state["signature"]["tokenizer"] = "other"
    with pytest.raises(UserError, match=r"^data\.tokenizer=\S+ is not the one that .* trained with, .*set it back$"):
        other.load_state_dict(state)


@pytest.mark.parametrize("change", [{"num_workers": 2}, {"validation_tokens": 9}, {"validation_batch_size": 1}])
def test_what_does_not_change_the_order_may_change(make_data, change):
    make_data(**change).load_state_dict(make_data().state_dict())


@pytest.mark.parametrize("overlay", sorted(OVERLAYS.glob("*.yaml")), ids=lambda path: path.stem)
def test_overlays_are_arguments_of_the_data_module(overlay, no_network, tmp_path):
    content = yaml.safe_load(overlay.read_text())
    assert overlay.read_text().startswith("# Data: ")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(C4DataModule, "data")
    config = parser.parse_object({"data": content["data"]})
    data = C4DataModule(**config.data.as_dict())
    assert data.source == {"c4_local": "local"}.get(overlay.stem, overlay.stem)
    if overlay.stem != "tokens":  # which lies on top of the overlay of the text, whose vocabulary it has
        assert content["model"]["config"]["vocab_size"] == (4096 if overlay.stem == "pydocs" else 32000)


def test_every_argument_is_documented():
    parser = ArgumentParser()
    parser.add_class_arguments(C4DataModule, "data")
    documented = inspect.getdoc(C4DataModule) or ""
    names = [action.dest.removeprefix("data.") for action in parser._actions if action.dest.startswith("data.")]
    assert len(names) == 15
    for name in names:
        assert f"    {name}: " in documented
