"""What leaves is what was trained: the same logits, the same greedy text, the same ids, and a card that says so."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import LOW_RANK, as_trained, random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from elas_lightning.cli import main
from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.data.tokenizer import END_OF_TEXT, TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.inference import card
from elas_lightning.inference.export import export_model
from elas_lightning.inference.generate import generate
from elas_lightning.inference.load import load_model
from elas_lightning.inference.mask_effect import measure_mask_effect
from elas_lightning.inference.to_hf import merged_weights
from elas_lightning.nn import ExpertsConfig, SparsityConfig
from elas_lightning.nn.linear import LowRankLinear
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.runner import execute

transformers = pytest.importorskip("transformers", reason="exports are read back by transformers")
SHAPES: list[dict[str, Any]] = [
    {"hidden_size": 48, "intermediate_size": 100, "num_layers": 3, "num_heads": 2},
    {"vocab_size": 317, "hidden_size": 40, "intermediate_size": 112, "num_heads": 10, "rope_theta": 500.0},
    {"num_layers": 1, "norm_eps": 1e-5},
]
KINDS: list[dict[str, Any]] = [{"ffn": "swiglu"}, {"ffn": "relu2"}]


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [{}, LOW_RANK])
@torch.no_grad()
def test_logits_of_dense_models_are_equal(
    shape: dict[str, Any], kind: dict[str, Any], ranks: dict[str, int], tokenizer_file: Path, tmp_path: Path
) -> None:
    model = random_model(**{**shape, **kind, **ranks})
    done = export_model(as_trained(model, tokenizer_file), tmp_path / "out")
    other = theirs(tmp_path / "out")
    assert type(other).__name__ == done.what == ("LlamaForCausalLM" if kind["ffn"] == "swiglu" else "ArceeForCausalLM")
    assert done.effect is None
    for batch, time in ((1, 1), (2, 33)):
        ids_BT = torch.randint(model.config.vocab_size, (batch, time))
        logits = model(ids_BT)
        assert logits.std() > 0.1
        torch.testing.assert_close(other(input_ids=ids_BT).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("seed", "ffn"), [(0, "swiglu"), (7, "swiglu"), (2, "relu2"), (4, "relu2")])
def test_greedy_text_is_equal_over_200_tokens(seed: int, ffn: str, tokenizer_file: Path, tmp_path: Path) -> None:
    model = random_model(seed, ffn=ffn, **LOW_RANK)  # whose text does not soon repeat itself
    trained = as_trained(model, tokenizer_file)
    export_model(trained, tmp_path / "out")
    prompt = [17, 250, 3, 99]
    # the end token is left out of both, so that all 200 are made
    ours = list(generate(model, prompt, max_new_tokens=200))
    output = theirs(tmp_path / "out").generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4), max_new_tokens=200, eos_token_id=None, do_sample=False
    )
    assert output[0, 4:].tolist() == ours
    assert len(ours) == 200
    assert len(set(ours)) > 20


def test_both_stop_behind_the_end_token(tokenizer_file: Path, tmp_path: Path) -> None:
    model = random_model(**LOW_RANK)
    with torch.no_grad():  # the end token's logit wins at the fourth step or so
        model.lm_head.weight[0] = model.lm_head.weight[list(generate(model, [7], max_new_tokens=4))[-1]] * 1.01
    trained = as_trained(model, tokenizer_file)
    assert trained.tokenizer.end_id == 0
    export_model(trained, tmp_path / "out")
    ours = list(generate(model, [7], max_new_tokens=50, end_id=0))
    assert ours[-1] == 0
    output = theirs(tmp_path / "out").generate(torch.tensor([[7]]), attention_mask=torch.ones(1, 1), max_new_tokens=50)
    assert output[0, 1:].tolist() == ours


def test_configuration_names_ids_that_the_model_has(tokenizer_file: Path, tmp_path: Path) -> None:
    export_model(as_trained(random_model(ffn="relu2"), tokenizer_file), tmp_path / "out", dtype="bfloat16")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 0, None)
    assert config.rms_norm_eps == 1e-6
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.max_position_embeddings == 256
    assert config.dtype == torch.bfloat16
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.pad_token_id) == (0, 0)
    assert theirs(tmp_path / "out").lm_head.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_factors_are_multiplied_in_float32_and_then_cast() -> None:
    model = random_model(ffn="relu2", **LOW_RANK).to(torch.bfloat16)
    merged = merged_weights(model, torch.bfloat16)
    layer = model.layers[0].mlp.up_proj
    assert isinstance(layer, LowRankLinear)
    expected = (layer.B.double() @ layer.A.double()).to(torch.bfloat16)
    wrong = (merged["model.layers.0.mlp.up_proj.weight"] != expected).float().mean()
    assert wrong < 0.005  # a float32 sum rounds the other way now and then; a bfloat16 one differs in a third


@pytest.mark.parametrize("text", ["the old stone wall", "naïve — 漢字 🙂\n\ttabs  spaces", "", "a\n\n\nb"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_gives_our_ids(text: str, kind: dict[str, Any], tokenizer_file: Path, tmp_path: Path) -> None:
    trained = as_trained(random_model(**kind, num_layers=1), tokenizer_file)
    export_model(trained, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = trained.tokenizer.encode([text])[0].tolist()
    assert tokenizer(text).input_ids == ours[:-1]
    assert tokenizer(text + tokenizer.eos_token).input_ids == ours
    assert tokenizer.eos_token_id == trained.tokenizer.end_id
    assert tokenizer.decode(ours, skip_special_tokens=True) == text
    spelled = f"say {END_OF_TEXT} twice"
    expected = trained.tokenizer.encode([spelled])[0].tolist()[:-1]
    assert tokenizer(spelled, split_special_tokens=True).input_ids == expected


def test_a_tokenizer_like_t5_loses_its_sentinels_and_its_template(tokenizer_file: Path, tmp_path: Path) -> None:
    pieces = ["<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab", "<extra_id_1>", "<extra_id_0>"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"])
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    trained = as_trained(random_model(vocab_size=7), tokenizer_file)
    text = TextTokenizer(tokenizer, "like-t5")
    export_model(type(trained)(**{**vars(trained), "tokenizer": text}), tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(exported) == 7
    assert exported("ab b a").input_ids == text.encode(["ab b a"])[0].tolist()[:-1]
    assert exported.eos_token_id == 1
    assert max(exported("<extra_id_0>").input_ids) < 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"experts": ExpertsConfig(2)},
            "model.config.experts.count = 2 cannot be exported in merged form: no stock architecture routes",
        ),
        ({"ffn": "gelu"}, "model.config.ffn = 'gelu' cannot be exported in merged form"),
        ({"ffn": "silu"}, "model.config.ffn = 'silu' cannot be exported in merged form"),
        ({"ffn": "relu"}, "model.config.ffn = 'relu' cannot be exported in merged form"),
        ({**LOW_RANK, "bottleneck_activation": "silu"}, "bottleneck_activation = 'silu' cannot be exported"),
    ],
)
@torch.no_grad()
def test_what_no_architecture_holds_is_refused_and_kept_by_factors(
    changes: dict[str, Any], message: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    trained = as_trained(random_model(**changes), tokenizer_file)
    with pytest.raises(UserError, match=message) as refusal:
        export_model(trained, tmp_path / "merged")
    assert "`--form factors` keeps it" in str(refusal.value)
    assert not (tmp_path / "merged").exists()
    export_model(trained, tmp_path / "factors", form="factors")
    ids_BT = torch.randint(300, (2, 9))
    assert torch.equal(load_model(tmp_path / "factors").model(ids_BT), trained.model(ids_BT))


@pytest.mark.parametrize("method", ["sltrain", "relora", "sr_ste", "s_ste", "transposable"])
@torch.no_grad()
def test_weights_made_by_a_rule_leave_as_they_compute(method: str, tokenizer_file: Path, tmp_path: Path) -> None:
    ranks = LOW_RANK if method in ("sltrain", "relora") else {}
    model = random_model(3, weights=WeightsConfig(method=method), **ranks)  # type: ignore[arg-type]
    export_model(as_trained(model, tokenizer_file), tmp_path / "out", eval_tokens=0)
    ids_BT = torch.randint(model.config.vocab_size, (2, 9))
    expected = model(ids_BT)
    torch.testing.assert_close(theirs(tmp_path / "out")(input_ids=ids_BT).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["sltrain", "relora", "sr_ste", "s_ste", "transposable", "asp"])
@torch.no_grad()
def test_masks_and_indices_of_rules_leave_as_they_are(
    method: str, dtype: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    ranks = LOW_RANK if method in ("sltrain", "relora") else {}
    # a matrix has more entries than bfloat16 can count, and a seed more digits than float32
    model = random_model(3, weights=WeightsConfig(method=method), **ranks)  # type: ignore[arg-type]
    export_model(as_trained(model, tokenizer_file), tmp_path / "out", form="factors", dtype=dtype)
    loaded = load_model(tmp_path / "out").model
    expected = model.to(getattr(torch, dtype)).state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name
    ids_BT = torch.randint(model.config.vocab_size, (2, 9))
    assert torch.equal(loaded(ids_BT), model(ids_BT))


@torch.no_grad()
def test_a_layer_that_is_no_matrix_is_refused() -> None:
    class Other(LowRankLinear):
        """Computes something else."""

    model = random_model(**LOW_RANK)
    model.layers[0].self_attn.q_proj.__class__ = Other
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj \(Other\) cannot be exported"):
        merged_weights(model, torch.float32)


@pytest.mark.parametrize("form", ["merged", "factors"])
def test_weights_that_overflow_are_refused(form: Any, tokenizer_file: Path, tmp_path: Path) -> None:
    model = random_model()
    with torch.no_grad():
        model.embed_tokens.weight[5, 5] = 1e6
    with pytest.raises(
        UserError, match=r"embed_tokens(\.weight)? are not finite in torch\.float16: export with --dtype float32"
    ):
        export_model(as_trained(model, tokenizer_file), tmp_path / "out", dtype="float16", form=form)


def test_an_activation_of_ones_own_goes_by_its_name(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(card._FFN, "gelu")  # as one that was added as docs/how-to/activation.md says
    export_model(as_trained(random_model(ffn="gelu"), tokenizer_file), tmp_path / "out", form="factors")
    assert "feed-forward networks with gelu, without a gate" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("wrong", [{"dtype": "float8"}, {"form": "both"}])
def test_refuses_unknown_choices(wrong: dict[str, Any], tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(wrong.values()))):
        export_model(as_trained(random_model(), tokenizer_file), tmp_path / "out", **wrong)


def test_says_when_transformers_is_missing(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers is not installed: pip install 'elas-lightning\[export\]'"):
        export_model(as_trained(random_model(), tokenizer_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_the_factors_form_is_exact_and_knows_its_run(run: ElasCLI, tmp_path: Path) -> None:
    trained = load_model(run.directory)
    export_model(trained, tmp_path / "out", form="factors")
    again = load_model(tmp_path / "out")
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    ids_BT = torch.randint(300, (2, 16))
    assert again.model.sparsity_active
    assert torch.equal(again.model(ids_BT), trained.model(ids_BT))
    assert again.tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert again.result == trained.result
    assert again.step == 12
    assert {**again.data, "cache_dir": None} == {**trained.data, "cache_dir": None}


@torch.no_grad()
def test_the_measured_effect_is_that_of_the_mask_on_the_runs_validation_tokens(run: ElasCLI) -> None:
    trained = load_model(run.directory)
    effect = measure_mask_effect(trained, 150)
    assert effect.tokens == 150
    assert trained.model.sparsity_active
    # by another way: whole logits of each row, and the run's own figure on all its tokens
    data = type(run.datamodule)(**{**trained.data, "validation_tokens": 150})
    for active, measured in ((True, effect.kept), (False, effect.dropped)):
        trained.model.set_sparsity(active)
        nll = [
            torch.nn.functional.cross_entropy(
                trained.model(b["input_ids"]).flatten(0, 1), b["labels"].flatten(), ignore_index=-100, reduction="sum"
            )
            for b in data.val_dataloader()
        ]
        assert measured == pytest.approx(float((sum(nll) / 150).exp()), rel=1e-5)
    trained.model.set_sparsity(True)
    assert effect.kept != effect.dropped
    assert trained.result is not None
    whole = measure_mask_effect(trained, trained.data["validation_tokens"])
    assert whole.kept == pytest.approx(trained.result.metrics["val_perplexity"], rel=1e-5)


def test_the_effect_is_measured_in_float32_whatever_the_folder_holds(run: ElasCLI, tmp_path: Path) -> None:
    export_model(load_model(run.directory), tmp_path / "half", form="factors", dtype="bfloat16", eval_tokens=0)
    half, whole = load_model(tmp_path / "half"), load_model(tmp_path / "half")
    whole.model.float()
    assert measure_mask_effect(half, 150) == measure_mask_effect(whole, 150)
    assert half.model.lm_head.weight.dtype == torch.bfloat16
    assert half.model.sparsity_active


def test_the_card_of_a_run_on_token_shards_names_their_text(
    write_overlay: Callable[[Path], Path], tmp_path: Path
) -> None:
    overlay = write_overlay(tmp_path)
    prepare_arguments = ["data", "prepare", "--config", str(overlay), "--out", str(tmp_path / "tokens"), "--workers=1"]
    assert main(prepare_arguments) == 0
    own = {
        "trainer.default_root_dir": str(tmp_path / "run"),
        "checkpoint.every_n_train_steps": 12,
        "data.source": "tokens",
        "data.path": str(tmp_path / "tokens"),
        "data.tokenizer": "auto",
    }
    cli = ElasCLI(command_line([overlay], own), run=False)
    result = execute(cli)
    export_model(load_model(tmp_path / "run"), tmp_path / "out", eval_tokens=0)
    card = (tmp_path / "out/README.md").read_text()
    assert f"| Data | local shards in C4's format, fingerprint `{result.data['fingerprint']}` |" in card
    assert "| Batching | pack, 16 tokens a row |" in card
    (tmp_path / "run/result.json").unlink()
    export_model(load_model(tmp_path / "run"), tmp_path / "alone", eval_tokens=0)
    assert "| Data | token shards of `elas data prepare` |" in (tmp_path / "alone/README.md").read_text()


def test_the_card_tells_the_run(run: ElasCLI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.directory), str(tmp_path / "out"), "--eval-tokens", "150"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"ArceeForCausalLM: {tmp_path / 'out'}"
    card = (tmp_path / "out/README.md").read_text()
    result = load_model(run.directory).result
    assert result is not None
    effect = re.fullmatch(r"perplexity with the 2:4 step ([\d.]+), without ([\d.]+) \((.*) %, 150 tokens\)", shown[-2])
    assert effect is not None
    for fact in (
        f"| Perplexity, with the 2:4 step | {result.metrics['val_perplexity']:.2f} |",
        f"| with the 2:4 step, as trained | {effect[1]} |",
        f"| without it, as in this folder | {effect[2]} ({effect[3]} %) |",
        "first 150 validation tokens",
        "One seed (0): there is no interval",
        f"| Tokens | {result.metrics['tokens']:,} (targets) |",
        "| Steps | 12 |",
        result.data["fingerprint"],
        result.environment["hardware"],
        f"torch {torch.__version__}",
        result.environment["command"],
        "**This folder's model is dense.**",
    ):
        assert fact in card, fact
    assert "\n\n\n" not in card


def test_the_cards_own_code_runs(
    run: ElasCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(load_model(run.directory), tmp_path / "out", eval_tokens=0)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert capsys.readouterr().out.startswith("The")


def test_other_seeds_beside_the_run_give_an_interval(run: ElasCLI, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "runs/0")
    trained = load_model(tmp_path / "runs/0")
    assert trained.result is not None
    for seed, perplexity in ((1, 200.0), (2, 230.0), (7, 999.0)):
        content = json.loads((run.directory / "result.json").read_text())
        content["seed"] = content["config"]["seed_everything"] = content["config"]["data"]["seed"] = seed
        content["metrics"]["val_perplexity"] = perplexity
        if seed == 7:  # another experiment
            content["config"]["model"]["optimizer"]["lr"] = 0.5
        (tmp_path / f"runs/{seed}").mkdir()
        (tmp_path / f"runs/{seed}/result.json").write_text(json.dumps(content))
    (tmp_path / "runs/torn").mkdir()
    (tmp_path / "runs/torn/result.json").write_text("{")
    export_model(trained, tmp_path / "out", eval_tokens=0)
    card = (tmp_path / "out/README.md").read_text()
    values = torch.tensor([trained.result.metrics["val_perplexity"], 200.0, 230.0], dtype=torch.float64)
    half = 4.302653 * float(values.std()) / 3**0.5  # t of 2 degrees of freedom at 97.5 %
    assert f"Over 3 seeds of the same run the perplexity is **{values.mean():.2f} ± {half:.2f}**" in card
    assert "200.00 (seed 1), 230.00 (seed 2)." in card
    assert "**was not measured** at export: it was not asked for (--eval-tokens 0)." in card


def test_data_out_of_reach_is_said_in_the_card_and_on_standard_error(
    run: ElasCLI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(load_model(run.directory), tmp_path / "factors", form="factors", eval_tokens=0)
    config = json.loads((tmp_path / "factors/config.json").read_text())
    config["data"]["path"] = "/gone"
    (tmp_path / "factors/config.json").write_text(json.dumps(config))
    assert main(["export", str(tmp_path / "factors"), str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert error.startswith("the effect of the 2:4 step was not measured: data.path='/gone' is not a folder")
    assert (
        "**was not measured** at export: data.path='/gone' is not a folder" in (tmp_path / "out/README.md").read_text()
    )


def test_other_data_than_the_runs_is_not_measured_on(run: ElasCLI, corpus: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for shard in sorted(corpus.iterdir())[1:]:
        (mine / shard.name).write_bytes(shard.read_bytes())
    trained = load_model(run.directory)
    moved = type(trained)(**{**vars(trained), "data": {**trained.data, "path": str(mine), "lanes": 1}})
    with pytest.raises(UserError, match=r"the data found here is .* and the run's was"):
        measure_mask_effect(moved, 100)


def test_a_checkpoint_of_the_dense_warm_up_says_so(tokenizer_file: Path, tmp_path: Path) -> None:
    model = random_model(ffn="relu2", sparsity=SparsityConfig(("ffn_hidden",)))
    model.set_sparsity(False)
    done = export_model(as_trained(model, tokenizer_file, step=10), tmp_path / "out")
    assert done.effect is None
    assert "still in its dense warm-up" in (tmp_path / "out/README.md").read_text()


def test_a_checkpoint_with_another_tokenizer_is_refused(run: ElasCLI, tmp_path: Path) -> None:
    other = Tokenizer.from_file(load_model(run.directory).data["tokenizer"])
    other.add_tokens(["new"])
    other.save(str(tmp_path / "other.json"))
    checkpoint = torch.load(run.checkpoint_path, weights_only=True)
    checkpoint["datamodule_hyper_parameters"]["tokenizer"] = str(tmp_path / "other.json")
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        load_model(tmp_path / "moved.ckpt")
