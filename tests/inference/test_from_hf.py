"""A checkpoint of Hugging Face becomes a model of ours: exact at full rank, the closest of its rank otherwise."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import as_trained, random_model

from elas_lightning.cli import main
from elas_lightning.data.tokenizer import END_OF_TEXT
from elas_lightning.errors import UserError
from elas_lightning.inference.export import export_model
from elas_lightning.inference.from_hf import import_model
from elas_lightning.inference.generate import generate
from elas_lightning.inference.load import load_model
from elas_lightning.nn.linear import LowRankLinear

transformers = pytest.importorskip("transformers", reason="checkpoints are written by transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def checkpoint(folder: Path, tokenizer_file: Path, kind: str = "Llama", shard: str = "5GB", **changes: Any) -> Any:
    """A random model of transformers on disk, and that model."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.mul_(6.0)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Arcee", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}),
        ("Llama", {"shard": "30KB"}),
        ("Llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
        ("Arcee", {"num_key_value_heads": 1}),
        ("Llama", {"tie_word_embeddings": True}),
    ],
)
@torch.no_grad()
def test_full_rank_gives_equal_logits(kind: str, changes: dict[str, Any], tokenizer_file: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "hf", tokenizer_file, kind, **changes)
    assert ("shard" in changes) == (tmp_path / "hf/model.safetensors.index.json").exists()
    done = import_model(tmp_path / "hf", tmp_path / "out")
    assert done.layers == []
    assert len(done.notes) == ("num_key_value_heads" in changes) + ("tie_word_embeddings" in changes)
    ours = load_model(tmp_path / "out")
    ids_BT = torch.randint(320, (2, 40))
    logits = model(input_ids=ids_BT).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(ours.model(ids_BT), logits, rtol=1e-4, atol=1e-4)
    assert ours.sequence_length == 128


@torch.no_grad()
def test_low_rank_is_the_closest_of_its_rank_and_says_what_it_kept(tokenizer_file: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "hf", tokenizer_file, "Arcee")
    done = import_model(tmp_path / "hf", tmp_path / "out", rank=6)
    assert [layer.name for layer in done.layers[:2]] == ["layers.0.mlp.down_proj", "layers.0.mlp.up_proj"]
    assert len(done.layers) == 2 * 6
    ours = load_model(tmp_path / "out").model
    for layer in done.layers:
        weight = model.get_submodule(f"model.{layer.name}").weight.double()
        module = ours.get_submodule(layer.name)
        assert isinstance(module, LowRankLinear)
        values = torch.linalg.svdvals(weight)
        lost = (weight - module.B.double() @ module.A.double()).square().sum()
        torch.testing.assert_close(lost, values[6:].square().sum(), rtol=1e-4, atol=0)  # Eckart and Young's bound
        assert layer.kept_energy == pytest.approx(float(values[:6].square().sum() / values.square().sum()))
        # balanced: both factors carry the root of each singular value
        torch.testing.assert_close(module.A.double().norm(dim=1), values[:6].sqrt(), rtol=1e-4, atol=0)
        torch.testing.assert_close(module.B.double().norm(dim=0), values[:6].sqrt(), rtol=1e-4, atol=0)
    facts = json.loads((tmp_path / "out/config.json").read_text())
    assert facts["origin"]["layers"][0] == {"name": done.layers[0].name, "kept_energy": done.layers[0].kept_energy}
    assert f"| `{done.layers[0].name}` | {done.layers[0].kept_energy:.4f} |" in (tmp_path / "out/README.md").read_text()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a folder."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("rank", [None, 6])
def test_weights_that_are_not_finite_are_refused(rank: int | None, tokenizer_file: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", tokenizer_file)
    rewrite(tmp_path / "hf", lambda w: w["model.layers.1.mlp.up_proj.weight"].view(-1)[3:4].fill_(math.nan))
    with pytest.raises(UserError, match=r"are not all finite \(layers\.1\.mlp\.up_proj\.weight\)"):
        import_model(tmp_path / "hf", tmp_path / "out", rank=rank)


@torch.no_grad()
def test_a_head_of_its_own_stays_though_the_configuration_ties_it(tokenizer_file: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", tokenizer_file)
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert import_model(tmp_path / "hf", tmp_path / "out").notes == []
    ids_BT = torch.randint(320, (2, 9))
    ours = load_model(tmp_path / "out").model
    torch.testing.assert_close(ours(ids_BT), theirs(input_ids=ids_BT).logits, rtol=1e-4, atol=1e-4)
    rewrite(tmp_path / "hf", lambda w: [w.pop("lm_head.weight"), w.pop("model.embed_tokens.weight")])
    with pytest.raises(UserError, match="Missing key"):
        import_model(tmp_path / "hf", tmp_path / "none")


@pytest.mark.parametrize("index", ['{"weight_map": []}', '{"weight_map": {"a": 3}}', "[]"])
def test_an_index_that_is_none_is_refused(index: str, tokenizer_file: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", tokenizer_file)
    (tmp_path / "hf/model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="the weights in"):
        import_model(tmp_path / "hf", tmp_path / "out")


def test_there_and_back_again(tokenizer_file: Path, tmp_path: Path) -> None:
    model = random_model(ffn="relu2", attention_rank=8, ffn_rank=8)
    export_model(as_trained(model, tokenizer_file), tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "back", rank=8)
    back = load_model(tmp_path / "back")
    ids_BT = torch.randint(300, (2, 20))
    torch.testing.assert_close(back.model(ids_BT), model(ids_BT), rtol=1e-4, atol=1e-4)
    assert list(generate(back.model, [5], max_new_tokens=20)) == list(generate(model, [5], max_new_tokens=20))
    export_model(back, tmp_path / "hf2")
    assert "Imported from a Hugging Face checkpoint" in (tmp_path / "hf2/README.md").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2")
    torch.testing.assert_close(again(input_ids=ids_BT).logits, model(ids_BT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "type 'gpt2': only llama and arcee can be imported"),
        ({"hidden_size": None}, "lacks a number above 0 as hidden_size"),
        ({"attention_bias": True}, "attention_bias = True, which cannot be imported"),
        ({"mlp_bias": True}, "mlp_bias = True, which cannot be imported"),
        ({"head_dim": 16}, "head_dim = 16, which cannot be imported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu', which cannot be imported: llama has silu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary frequencies are not scaled here"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rotary frequencies are not scaled here"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling = .*, which cannot be imported"),
        ({"rope_parameters": "default"}, "rope_parameters = 'default', which cannot be imported"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3, which cannot be imported"),
        ({"num_key_value_heads": -1}, "num_key_value_heads = -1, which cannot be imported"),
        ({"num_attention_heads": "4"}, "lacks a number above 0 as num_attention_heads"),
        ({"model_type": "arcee", "hidden_act": "relu2", "intermediate_size": 65}, "must be a multiple of 16"),
        ({"vocab_size": 200}, "has 300 ids and the model rows for 200"),
        ({"num_hidden_layers": 3}, "the weights do not fit their configuration"),
    ],
)
def test_refuses_what_our_model_cannot_hold(
    changes: dict[str, Any], message: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    checkpoint(tmp_path / "hf", tokenizer_file)
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        import_model(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_table_and_refuses_in_one_line(
    tokenizer_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(tmp_path / "hf"), str(tmp_path / "out")
    assert main(["import", source, out]) == 2
    assert "give a local folder of a Hugging Face model" in capsys.readouterr().err
    checkpoint(tmp_path / "hf", tokenizer_file, num_key_value_heads=2)
    endless = tmp_path / "endless.json"
    endless.write_text(tokenizer_file.read_text().replace(END_OF_TEXT, "<stop>"))
    capsys.readouterr()
    for arguments, message in (
        (
            ["--tokenizer", str(endless)],
            "endless.json: the tokenizer hf has no end-of-text token; it needs one of </s>",
        ),
        (["--rank", "33"], "--rank 33 is not possible: give 1 to 32"),
        (["--tokenizer", "gone.json"], "there is no gone.json"),
    ):
        assert main(["import", source, out, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["import", source, out, "--rank", "32"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split() == ["layer", "kept", "energy"]
    assert shown.out.count("1.0000") == 14
    assert shown.err == "note: 2 key and value heads were repeated for 4 query heads\n"
    assert main(["import", source, out]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    weights = tmp_path / "hf/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert main(["import", source, str(tmp_path / "other")]) == 2
    assert "cannot be read" in capsys.readouterr().err
