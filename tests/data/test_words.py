import json
import pickle
import random

import pytest
from small_corpus import sentences
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from elas_lightning.data import words
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.data.words import WordCache, words_of

PIECES = [
    "a",
    " b",
    "Word",
    " ",
    "  ",
    "\n",
    "naïve ",
    "e\u0301 x",
    "ﬁn",
    "don't",
    " 12",
    "3,",
    "</s>",
    "</s> y",
    "東京",
    " .",
    "\t",
    "é",
    "'s",
    "'",
    "('ll",
    "x_1",
    "\r\n",
    "\x0b",
    "\x01",
    "\u00a0",
    "\u200b",
    "\u0301",
    "<x>",
    "...",
    "42",
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences("w", 200),
        trainers.BpeTrainer(vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def byte_level_with_more():
    """As Pythia's: runs of spaces are tokens of their own, and no special ones."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(["  ", "   ", "<x>"])
    return tokenizer


def byte_level_with_a_first_space():
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    return tokenizer


def like_sentencepiece():
    """Metaspace alone: white space other than spaces is part of words."""
    tokenizer = like_t5()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def words_and_signs():
    tokenizer = like_t5()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<x>"])
    return tokenizer


def like_t5():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(sentences("w", 200), trainer)
    return tokenizer


KINDS = {
    byte_level: words._AT_KINDS,
    byte_level_with_more: words._AT_SPACES,
    byte_level_with_a_first_space: words._AT_SPACES,
    like_t5: words._AT_WHITE_SPACE,
    like_sentencepiece: words._AT_SPACES,
    words_and_signs: words._AT_WHITE_SPACE,
}


def documents():
    rng = random.Random(0)
    texts = ["", " ", "x", *sentences("h", 50)]
    for gap in ("", " "):
        texts += [gap.join(rng.choices(PIECES, k=rng.randint(0, 300))) for _ in range(300)]
    # any characters at all, most of them where normalisation has something to do
    ranges = [(1, 0x80), (1, 0x80), (0x80, 0x2100), (0x2000, 0x2070), (0x300, 0x370), (0x3000, 0x3200)]
    texts += ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(400)) for _ in range(300)]
    return texts


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def kind(request):
    return request.param


def by_the_library(raw, text):
    raw.encode_special_tokens = True
    end, unknown = raw.token_to_id("</s>"), raw.token_to_id("<unk>")  # the end token as a piece of text is unknown text
    return [unknown if index == end else index for index in raw.encode(text, add_special_tokens=False).ids]


def test_joined_words_are_what_the_tokenizer_makes_of_the_whole(kind):
    raw = kind()
    assert words_of(definition(raw)) is KINDS[kind]
    tokenizer = TextTokenizer(raw, "test")
    for text in documents():
        assert "".join(KINDS[kind].findall(text)) == text
        (ids,) = tokenizer.encode([text])
        assert ids.dtype == "int32"
        assert ids.tolist() == [*by_the_library(raw, text), tokenizer.end_id], repr(text)


def test_the_first_tokens_are_those_of_the_whole_document(kind):
    tokenizer = TextTokenizer(kind(), "test")
    texts = documents()
    for wanted in (2, 9, 33):
        shorter = 0
        for short, whole in zip(tokenizer.encode(texts, wanted), tokenizer.encode(texts), strict=True):
            assert short.tolist() == whole[: len(short)].tolist()
            assert len(short) >= min(wanted, len(whole))
            shorter += len(short) < len(whole)
        assert shorter > 100


def test_a_head_is_no_more_than_it_must_be_and_grows_over_long_words():
    seen = []

    def encode(word):
        seen.append(word)
        return b"\0" * words.BYTES_OF_ID * (1 + len(word) // 1000)

    cache = WordCache(words._AT_SPACES, encode)
    ids, whole = cache.encode_head("ab " * 10_000, 50)
    assert not whole
    assert 50 <= len(ids) / words.BYTES_OF_ID < 150
    assert set(seen) == {"ab", " ab"}
    seen.clear()
    long = "東" * 5000
    assert cache.encode_head(f"{long} a {long}", 4) == (b"\0" * words.BYTES_OF_ID * 6, False)
    assert seen == [f"{long} a"]


def test_the_cache_keeps_short_words_and_begins_anew_when_it_is_full(monkeypatch):
    monkeypatch.setattr(words, "_MOST", 3)
    asked = []
    cache = WordCache(words._AT_SPACES, lambda word: asked.append(word) or word.encode())
    cache.encode("a b a b")
    assert asked == ["a", " b", " a"]
    cache.encode("a " + "x" * 40)
    cache.encode("a " + "x" * 40)
    assert asked[3:] == [" " + "x" * 40] * 2
    assert len(cache) == 3
    cache.encode("new")
    assert list(cache) == ["new"]


def test_a_tokenizer_that_travels_to_a_worker_leaves_its_words_behind():
    tokenizer = TextTokenizer(byte_level(), "test")
    texts = [*sentences("h", 20), "</s> is text"]
    before = tokenizer.encode(texts)
    assert tokenizer._words
    travelled = pickle.loads(pickle.dumps(tokenizer))
    assert len(travelled._words) == 0
    for ours, theirs in zip(before, travelled.encode(texts), strict=True):
        assert ours.tolist() == theirs.tolist()


def definition(tokenizer):
    return json.loads(tokenizer.to_str())


ACROSS_WORDS = [pre_tokenizers.Split("b c", "isolated")]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Punctuation()},
        {"pre_tokenizer": pre_tokenizers.Sequence([*ACROSS_WORDS, pre_tokenizers.Metaspace()])},
        {"normalizer": normalizers.Replace("a b", "c")},
        {"normalizer": normalizers.Prepend("x")},
        {"normalizer": normalizers.Strip()},
    ],
    ids=repr,
)
def test_tokenizers_that_may_look_across_words_encode_whole_documents(change):
    raw = byte_level()
    for name, part in change.items():
        setattr(raw, name, part)
    assert words_of(definition(raw)) is None


@pytest.mark.parametrize("token", ["New York", AddedToken("<x>", rstrip=True)], ids=repr)
def test_so_do_those_with_tokens_that_reach_across(token):
    raw = byte_level()
    raw.add_tokens([token])
    assert words_of(definition(raw)) is None


def test_such_a_tokenizer_encodes_whole_documents():
    raw = byte_level()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = TextTokenizer(raw, "test")
    texts = sentences("h", 20)
    for ids, text in zip(tokenizer.encode(texts, 3), texts, strict=True):
        assert ids.tolist() == [*by_the_library(raw, text), tokenizer.end_id]


def test_what_a_file_says_of_cutting_and_padding_is_another_models_affair():
    raw = byte_level()
    texts = sentences("h", 5)
    plain = [ids.tolist() for ids in TextTokenizer(byte_level(), "test").encode(texts)]
    raw.enable_truncation(4)
    raw.enable_padding(length=1000)
    assert [ids.tolist() for ids in TextTokenizer(raw, "test").encode(texts)] == plain
