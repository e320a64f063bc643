"""Generated ids follow the model's distribution, and their text is whole characters."""

import io
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from small_models import LOW_RANK, as_trained, random_model
from tokenizers import Tokenizer, decoders, models

from elas_lightning.cli import main
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.inference.export import export_model
from elas_lightning.inference.generate import TextStream, generate, next_token_probabilities, prompt_ids
from elas_lightning.nn import SparsityConfig

TEXT = "naïve café — 漢字 🙂\n\ttabs"


@pytest.mark.parametrize("sparse", [False, True])
@torch.no_grad()
def test_greedy_is_the_likeliest_token_of_the_whole_text_each_time(sparse: bool) -> None:
    model = random_model(ffn="relu2", **LOW_RANK, sparsity=SparsityConfig(("ffn_hidden",) if sparse else ()))
    ids = [3, 200, 7]
    for token in generate(model, ids, max_new_tokens=30):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 33


def test_stops_behind_the_end_token() -> None:
    model = random_model()
    free = list(generate(model, [1, 2], max_new_tokens=30))
    end = free[10]
    first = free.index(end)
    assert list(generate(model, [1, 2], max_new_tokens=30, end_id=end)) == free[: first + 1]


def independent_nucleus(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """By the definition, in Python's float64: likeliest tokens until they reach top_p."""
    weights = [math.exp(x / temperature) for x in logits]
    p = [weight / sum(weights) for weight in weights]
    kept, reached = set(), 0.0
    for index in sorted(range(len(p)), key=lambda i: -p[i]):
        if reached >= top_p:
            break
        kept.add(index)
        reached += p[index]
    return [value / reached if i in kept else 0.0 for i, value in enumerate(p)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.31, 1e-6, 1e-300])
def test_probabilities_by_the_definition(temperature: float, top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(4)) * 2
    expected = torch.tensor(independent_nucleus(logits.tolist(), temperature, top_p))
    torch.testing.assert_close(next_token_probabilities(logits, temperature, top_p), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [1e-40, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature: float) -> None:
    found = next_token_probabilities(torch.tensor([-2.0, 3.0, 2.9, 1.0]), temperature, 1.0)
    assert found.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_probabilities_as_transformers_makes_them() -> None:
    transformers = pytest.importorskip("transformers", reason="compared where transformers is installed")
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(5)) * 3
    theirs = transformers.TemperatureLogitsWarper(0.7)(None, logits)
    theirs = transformers.TopPLogitsWarper(0.8)(None, theirs).softmax(-1)
    ours = torch.stack([next_token_probabilities(row, 0.7, 0.8) for row in logits])
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_samples_have_these_probabilities() -> None:
    model = random_model(vocab_size=12, hidden_size=8, num_layers=1, num_heads=1)
    # two tokens, of which the second is drawn after the first: both must be right
    expected: Counter[tuple[int, int]] = Counter()
    first = independent_nucleus(model(torch.tensor([[1, 2]]))[0, -1].tolist(), 1.5, 0.9)
    for a, p_a in enumerate(first):
        if p_a:
            second = independent_nucleus(model(torch.tensor([[1, 2, a]]))[0, -1].tolist(), 1.5, 0.9)
            expected.update({(a, b): p_a * p_b for b, p_b in enumerate(second) if p_b})  # type: ignore[dict-item]
    draws = 1000
    settings = {"max_new_tokens": 2, "temperature": 1.5, "top_p": 0.9}
    drawn = Counter(tuple(generate(model, [1, 2], seed=seed, **settings)) for seed in range(draws))
    assert set(drawn) <= set(expected)
    chi_square = sum((drawn[key] - draws * p) ** 2 / (draws * p) for key, p in expected.items())
    freedom = len(expected) - 1
    assert freedom > 10
    # mean and spread of the statistic if the probabilities are right
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_a_seed_gives_its_tokens_again() -> None:
    model = random_model()
    texts = [tuple(generate(model, [5], max_new_tokens=20, temperature=1.0, seed=s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("ids", "wrong", "message"),
    [
        ([1], {"max_new_tokens": 0}, "max_new_tokens = 0 is not possible"),
        ([1], {"temperature": -0.1}, "temperature = -0.1 is not possible"),
        ([1], {"temperature": math.nan}, "temperature = nan is not possible"),
        ([1], {"top_p": 0.0}, "top_p = 0.0 is not possible"),
        ([1], {"top_p": 1.1}, "top_p = 1.1 is not possible"),
        ([], {}, "the prompt is empty"),
        ([300], {}, "outside of the model's 300"),
    ],
)
def test_refuses_at_once(ids: list[int], wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(random_model(), ids, **wrong)  # type: ignore[arg-type]


def test_a_stream_of_bytes_gives_whole_characters(tokenizer_file: Path) -> None:
    tokenizer = TextTokenizer(Tokenizer.from_file(str(tokenizer_file)), "small")
    ids = prompt_ids(tokenizer, TEXT)
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.close() == TEXT
    assert "�" not in "".join(pieces)
    assert any(piece == "" for piece in pieces)  # a character that was not yet whole
    assert TextStream(tokenizer).add(tokenizer.end_id) == ""
    assert TextStream(tokenizer).add(tokenizer.vocab_size + 5) == ""


def test_a_character_that_never_ends_is_shown_as_such(tokenizer_file: Path) -> None:
    tokenizer = TextTokenizer(Tokenizer.from_file(str(tokenizer_file)), "small")
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in prompt_ids(tokenizer, "🙂")[:2]] == ["", ""]
    assert stream.close() == "�"


def test_a_stream_of_pieces_keeps_their_spaces() -> None:
    pieces = ["</s>", "<unk>", "▁the", "▁old", "er", "<0xC3>", "<0xA9>", "▁"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    stream = TextStream(TextTokenizer(tokenizer, "pieces"))
    assert [stream.add(token) for token in (2, 3, 4, 5, 6, 7, 1, 0)] == [" the", " old", "er", "", "é", " ", "", ""]


@pytest.fixture
def folder(tokenizer_file: Path, tmp_path: Path) -> Path:
    pytest.importorskip("safetensors", reason="folders are written with safetensors")
    return export_model(as_trained(random_model(), tokenizer_file), tmp_path / "folder", form="factors").folder


def test_the_command_prints_prompt_and_continuation(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["generate", str(folder), TEXT, "--max-new-tokens", "12"]) == 0
    given = capsys.readouterr()
    assert given.out.startswith(TEXT)
    assert given.out.endswith("\n")
    assert "12 tokens to the limit of tokens" in given.err or "the end token" in given.err
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert main(["generate", str(folder), "-", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == given.out


def test_the_command_says_when_it_leaves_what_the_model_knows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", str(folder), "word", "--max-new-tokens", "300"])
    assert "trained on 256 tokens at a time" in capsys.readouterr().err


def test_the_command_refuses_an_empty_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), ""]) == 2
    assert capsys.readouterr().err == "error: the prompt is empty: give at least one token of text to continue\n"


def test_the_command_refuses_a_prompt_that_is_not_utf_8(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # as Python hands over a byte of the command line that is none
    assert main(["generate", str(folder), b"bad \xff byte".decode("utf-8", "surrogateescape")]) == 2
    error = capsys.readouterr().err
    assert error == "error: the prompt is not UTF-8 text (surrogates not allowed at character 4)\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"bad \xff byte"), encoding="utf-8"))
    assert main(["generate", str(folder), "-"]) == 2
    error = capsys.readouterr().err
    assert error == "error: the prompt is not UTF-8 text (invalid start byte at byte 4)\n"


@pytest.mark.parametrize("device", ["abacus", "meta:x", *([] if torch.cuda.is_available() else ["cuda"])])
def test_the_command_refuses_a_device_that_is_not_there(
    device: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folder), "word", "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: device '{device}' cannot be used here: ")
    assert error.count("\n") == 1


def test_ctrl_c_ends_the_line_and_says_nothing_of_going_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextStream, "add", interrupted)
    assert main(["generate", str(folder), "word"]) == 130
    given = capsys.readouterr()
    assert (given.out, given.err) == ("word\n", "")
