import json
import random

import pytest
from small_corpus import sentences
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from elas_lightning.data.heads import cuts_at_spaces, head
from elas_lightning.data.tokenizer import TextTokenizer

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
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences("w", 200), trainers.BpeTrainer(vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet,
                                                 show_progress=False))  # fmt: skip
    return tokenizer


def like_t5():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(sentences("w", 200), trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, like_t5])
def test_the_first_tokens_are_those_of_the_whole_document(make):
    tokenizer = TextTokenizer(make(), "test")
    assert tokenizer._cuts_at_spaces
    rng = random.Random(0)
    texts = sentences("h", 50)
    texts += [" ".join(rng.choices(PIECES, k=rng.randint(0, 300))) for _ in range(300)]
    texts += ["".join(rng.choices(PIECES, k=rng.randint(0, 300))) for _ in range(300)]
    for wanted in (2, 9, 33):
        cut = 0
        for short, whole in zip(tokenizer.encode_heads(texts, wanted), tokenizer.encode(texts), strict=True):
            assert short[:wanted].tolist() == whole[:wanted].tolist()
            assert len(short) >= min(wanted, len(whole))
            cut += len(short) < len(whole)
        assert cut > 100


def test_a_head_ends_between_two_words():
    assert head("abc def ghi jkl", 2) == "abc def ghi"
    assert head("abc def ghijklmn", 2) == "abc def"
    assert head("abc def ghi", 2) is None  # short enough
    assert head("abc, 12 é x", 1) is None  # no space between two letters
    assert head("x" * 100, 2) is None
    assert head("a b  c  d  e  f  g", 2) == "a"


def definition(tokenizer):
    return json.loads(tokenizer.to_str())


def test_tokenizers_that_may_look_across_words_are_not_cut():
    plain = byte_level()
    assert cuts_at_spaces(definition(plain))
    plain.pre_tokenizer = None
    assert not cuts_at_spaces(definition(plain))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert not cuts_at_spaces(definition(plain))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    assert not cuts_at_spaces(definition(plain))
    other = byte_level()
    other.normalizer = normalizers.Replace("a b", "c")
    assert not cuts_at_spaces(definition(other))
    other = byte_level()
    other.add_tokens(["New York"])
    assert not cuts_at_spaces(definition(other))


def test_such_a_tokenizer_encodes_whole_documents():
    raw = byte_level()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = TextTokenizer(raw, "test")
    texts = sentences("h", 20)
    whole = tokenizer.encode(texts)
    assert [ids.tolist() for ids in tokenizer.encode_heads(texts, 3)] == [ids.tolist() for ids in whole]
