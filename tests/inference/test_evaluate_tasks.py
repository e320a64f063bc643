"""lm-eval on our model object finds what its own backend finds on the same weights in transformers' model."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_corpus import WORDS, sentences

from elas_lightning.cli import main
from elas_lightning.configuration import ElasCLI
from elas_lightning.data.tokenizer import END_OF_TEXT, TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.nn.llama import Llama

pytest.importorskip("lm_eval", reason="runs where lm-eval is installed (the extra `eval`)")
transformers = pytest.importorskip("transformers", reason="runs where transformers is installed")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from elas_lightning.inference import evaluate_tasks  # noqa: E402
from elas_lightning.inference.evaluate_tasks import ElasLM, run_tasks  # noqa: E402

LENGTH = 40
TASKS = ["small_choice", "small_prose", "small_answer"]


def _write_task(folder: Path, name: str, records: list[dict[str, Any]], **settings: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def _metrics(**higher_is_better: bool) -> list[dict[str, Any]]:
    rolling = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
    return [
        {"metric": name, "aggregation": rolling.get(name, "mean"), "higher_is_better": better}
        for name, better in higher_is_better.items()
    ]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, no_network: None, tmp_path: Path) -> None:
    """Data files are read into a cache of the test's own, without asking anyone."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def task_files(tmp_path: Path) -> Path:
    """A multiple choice, a rolling perplexity and a generation, all on generated words."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rng = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    questions = [
        {"question": words(1, 30), "choices": [f" {words(1, 4)}" for _ in range(3)], "answer": rng.randrange(3)}
        for _ in range(30)
    ]
    # one that has no context at all, and is predicted from the end token
    questions.append({"question": "", "choices": ["noon", "a wall"], "answer": 1})
    _write_task(
        folder,
        "small_choice",
        questions,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="answer",
        target_delimiter="",
        metric_list=_metrics(acc=True, acc_norm=True),
    )
    _write_task(
        folder,
        "small_prose",
        [{"text": text} for text in sentences("p", 12)],
        doc_to_text="",
        doc_to_target="{{text}}",
        output_type="loglikelihood_rolling",
        metric_list=_metrics(word_perplexity=False, byte_perplexity=False),
    )
    _write_task(
        folder,
        "small_answer",
        [{"text": text} for text in sentences("g", 10)],
        doc_to_text="{{text}}",
        doc_to_target=" the",
        output_type="generate_until",
        generation_kwargs={"until": ["\n", "t"], "max_gen_toks": 8, "do_sample": False},
        metric_list=_metrics(exact_match=True),
    )
    return folder


@pytest.fixture
def ours(opinionated: Llama, text_tokenizer: TextTokenizer) -> ElasLM:
    return ElasLM(opinionated, text_tokenizer, LENGTH, batch_size=7)


@pytest.fixture
def theirs(opinionated: Llama, tokenizer_file: Path) -> HFLM:
    config = opinionated.config
    twin = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=LENGTH,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            bos_token_id=None,
            eos_token_id=0,
        )
    ).eval()
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": value
        for name, value in opinionated.state_dict().items()
    }
    twin.load_state_dict(weights, strict=True)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    return HFLM(pretrained=twin, tokenizer=tokenizer, max_length=LENGTH, batch_size=4, device="cpu")


def test_results_equal_those_of_the_hf_backend(ours: ElasLM, theirs: HFLM, task_files: Path) -> None:
    found = run_tasks(ours, TASKS, include=task_files)
    expected = simple_evaluate(
        model=theirs,
        tasks=TASKS,
        task_manager=TaskManager(include_path=str(task_files), include_defaults=False),
        log_samples=False,
    )
    assert expected is not None
    compared = 0
    for task in TASKS:
        for key, value in expected["results"][task].items():
            if isinstance(value, float):
                assert found["results"][task][key] == pytest.approx(value, rel=1e-4), (task, key)
                compared += 1
    assert compared >= 6
    assert found["results"]["small_choice"]["acc,none"] not in (0.0, 1.0)
    assert found["truncated"] > 0  # else nothing was said about requests that are too long


def _requests(*arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, given, i) for i, given in enumerate(arguments)]


def test_each_answer_equals_that_of_the_hf_backend(ours: ElasLM, theirs: HFLM) -> None:
    pairs = [("the old stone", " wall"), ("", "noon"), ("a lane ", "of words"), ("café", " — before noon")]
    mine, other = ours.loglikelihood(_requests(*pairs)), theirs.loglikelihood(_requests(*pairs))
    for (log_p, greedy), (their_log_p, their_greedy) in zip(mine, other, strict=True):
        assert log_p == pytest.approx(their_log_p, abs=1e-4)
        assert greedy == their_greedy
    texts = [(text,) for text in [*sentences("r", 5), ""]]
    assert ours.loglikelihood_rolling(_requests(*texts)) == pytest.approx(
        theirs.loglikelihood_rolling(_requests(*texts)), rel=1e-5
    )
    prompts = [(text, {"until": ["\n"], "max_gen_toks": 12}) for text in sentences("q", 6)]
    generated = ours.generate_until(_requests(*prompts))
    assert generated == theirs.generate_until(_requests(*prompts))
    assert len(set(generated)) > 1


def test_answers_do_not_depend_on_the_batch(opinionated: Llama, text_tokenizer: TextTokenizer) -> None:
    pairs = [(text, " the wall") for text in sentences("b", 9)]
    one, many = (ElasLM(opinionated, text_tokenizer, LENGTH, size) for size in (1, 9))
    for alone, together in zip(
        one.loglikelihood(_requests(*pairs)), many.loglikelihood(_requests(*pairs)), strict=True
    ):
        assert alone[0] == pytest.approx(together[0], abs=1e-4)


def test_a_greedy_answer_is_the_argmax_of_a_plain_forward_pass(ours: ElasLM) -> None:
    ids = ours.tok_encode("the old stone wall")
    with torch.no_grad():
        best = int(ours.model(torch.tensor([ids]))[0, -1].argmax())
    assert ours._loglikelihood_tokens([(None, ids, [best])])[0][1]
    assert not ours._loglikelihood_tokens([(None, ids, [(best + 1) % 300])])[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": [], "do_sample": True, "temperature": 0.7}, "set do_sample to false"),
        ({"until": [], "max_gen_toks": LENGTH}, f"leaves no room for a prompt in a window of {LENGTH}"),
    ],
)
def test_a_generation_that_cannot_be_done_is_refused(ours: ElasLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ours.generate_until(_requests(("the", options)))


def test_an_answer_longer_than_the_window_is_refused(ours: ElasLM) -> None:
    with pytest.raises(UserError, match="does not fit into a window of 40"):
        ours.loglikelihood(_requests(("the", " wall" * 60)))


def test_a_missing_folder_or_file_of_a_task_is_refused(ours: ElasLM, task_files: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        run_tasks(ours, TASKS, include=task_files / "none")
    (task_files / "small_choice.jsonl").unlink()
    with pytest.raises(UserError, match="--tasks small_choice: its data cannot be had"):
        run_tasks(ours, ["small_choice"], include=task_files)


def test_damaged_data_of_a_task_is_refused(ours: ElasLM, task_files: Path) -> None:
    (task_files / "small_choice.jsonl").write_text("{torn")
    with pytest.raises(UserError, match="--tasks small_choice: its data cannot be had"):
        run_tasks(ours, ["small_choice"], include=task_files)


def test_a_task_beside_its_group_is_refused(ours: ElasLM, task_files: Path) -> None:
    (task_files / "all_of_it.yaml").write_text("group: all_of_it\ntask: [small_choice, small_prose]\n")
    with pytest.raises(UserError, match=r"Duplicate task 'small_prose'.*name a group or tasks of it, not both"):
        run_tasks(ours, ["all_of_it", "small_prose"], include=task_files)


def test_limit_takes_the_first_examples(ours: ElasLM, task_files: Path) -> None:
    found = run_tasks(ours, ["small_choice"], include=task_files, limit=5)
    assert found["n-samples"]["small_choice"] == {"original": 31, "effective": 5}


def test_the_command_runs_local_tasks(
    run: ElasCLI, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval.json"
    arguments = ["--tasks", "small_choice,small_prose", "--include", str(task_files), "--length", str(LENGTH)]
    assert main(["eval", str(run.directory), *arguments, "--dense", "--limit", "9", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["tasks"]) == {"2:4 on", "2:4 off"}
    on, off = (found["tasks"][name]["results"] for name in ("2:4 on", "2:4 off"))
    assert on["small_prose"]["word_perplexity,none"] != off["small_prose"]["word_perplexity,none"]
    assert found["environment"]["versions"]["lm_eval"]
    shown = capsys.readouterr().out
    assert f"{on['small_choice']['acc_norm,none']:.4f}" in shown
    assert "lost their beginning" in shown


def test_an_unknown_task_is_refused_by_name(ours: ElasLM, task_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # without the 14,000 tasks that ship, whose index takes ten seconds to read
    monkeypatch.setattr(evaluate_tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(UserError, match="lm-eval knows no task 'no_such_task'"):
        run_tasks(ours, ["small_choice", "no_such_task"], include=task_files)
