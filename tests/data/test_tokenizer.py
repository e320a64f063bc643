import json
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from elas_lightning.data import tokenizer as tokenizer_module
from elas_lightning.data.sources import Source
from elas_lightning.data.tokenizer import END_OF_TEXT, TextTokenizer, load_tokenizer
from elas_lightning.errors import UserError

LOCAL = Source("local", "f", ("a",), ("b",))


@pytest.fixture
def byte_level(tokenizer_file):
    return TextTokenizer(Tokenizer.from_file(str(tokenizer_file)), "small")


@pytest.fixture
def like_t5():
    """What is special about T5's vocabulary: unigram pieces, an unknown one, sentinels at the end."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁é", -3.0), ("a", -2.0), ("b", -2.0)]
    pieces += [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"])
    return TextTokenizer(tokenizer, "like-t5")


@pytest.mark.parametrize("text", ["the old wall", "naïve — 漢字 🙂\n\ttabs  spaces", END_OF_TEXT, ""])
def test_byte_lengths_add_up_to_utf8(byte_level, text):
    (ids,) = byte_level.encode([text])
    assert ids.dtype == np.int32
    assert byte_level.byte_lengths[ids].sum() == len(text.encode("utf-8"))


@pytest.mark.parametrize("text", ["the old wall", "naïve — 漢字 🙂\n\ttabs  spaces", END_OF_TEXT, ""])
def test_the_bytes_of_tokens_are_the_text(byte_level, text):
    (ids,) = byte_level.encode([text])
    assert b"".join(byte_level.token_bytes[i] for i in ids) == text.encode("utf-8")


def test_an_added_token_stands_for_itself(tokenizer_file):
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_tokens(["né e"])
    added = TextTokenizer(tokenizer, "added")
    assert added.token_bytes[-1] == "né e".encode()


def test_the_end_token_closes_a_document_and_is_nowhere_else(byte_level):
    (ids,) = byte_level.encode([f"say {END_OF_TEXT} and go on"])
    assert (ids == byte_level.end_id).nonzero()[0].tolist() == [len(ids) - 1]
    revived = pickle.loads(pickle.dumps(byte_level))  # as a loader worker gets it
    assert revived.encode([END_OF_TEXT])[0].tolist() == byte_level.encode([END_OF_TEXT])[0].tolist()


def test_an_end_token_met_as_a_piece_of_text_is_unknown_text(like_t5):
    assert like_t5.encode(["ab</s>"])[0].tolist() == [3, 5, 6, 2, 1]


def test_an_end_token_that_its_file_does_not_call_special_is_so_all_the_same(byte_level):
    definition = json.loads(byte_level.definition)
    definition["added_tokens"] = []
    plain = TextTokenizer(Tokenizer.from_str(json.dumps(definition)), "plain")
    (ids,) = plain.encode([f"say {END_OF_TEXT}"])
    assert ids.tolist() == byte_level.encode([f"say {END_OF_TEXT}"])[0].tolist()
    assert plain.decode(ids.tolist()) == f"say {END_OF_TEXT}"


def test_the_end_token_is_the_special_one_of_several(byte_level):
    definition = json.loads(byte_level.definition)
    definition["model"]["vocab"]["</s>"] = byte_level.vocab_size  # a word of web pages
    assert TextTokenizer(Tokenizer.from_str(json.dumps(definition)), "web").end_token == END_OF_TEXT


def test_ids_may_have_gaps_and_tokens_may_be_spelled_otherwise(byte_level):
    definition = json.loads(byte_level.definition)
    definition["model"]["vocab"]["Ġthe"] = 5000
    definition["model"]["vocab"]["[unused 1]"] = 6000
    gaps = TextTokenizer(Tokenizer.from_str(json.dumps(definition)), "gaps")
    assert gaps.encode(["on the wall"])[0].max() == 5000
    assert len(gaps.token_bytes) == gaps.vocab_size == 6001
    assert gaps.token_bytes[5000:] == [b" the", *[b""] * 999, b"[unused 1]"]


def test_the_unknown_token_is_the_models_own():
    words = Tokenizer(models.WordLevel({"</s>": 0, "[?]": 1, "▁a": 2}, unk_token="[?]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = TextTokenizer(words, "words")
    assert tokenizer.unknown_token == "[?]"
    assert tokenizer.byte_lengths.tolist() == [0, 0, 2]


def test_sentinels_are_neither_counted_nor_produced(like_t5):
    assert like_t5.vocab_size == 7
    (ids,) = like_t5.encode(["ab <extra_id_0> b"])
    assert ids.max() < like_t5.vocab_size
    assert ids[-1] == like_t5.end_id == 1


def test_byte_lengths_of_pieces(like_t5):
    assert like_t5.byte_lengths.tolist() == [0, 0, 0, 1, 3, 1, 1]
    assert like_t5.token_bytes[4:] == [" é".encode(), b"a", b"b"]


def test_fingerprint_follows_the_definition(byte_level, tokenizer_file):
    same = Tokenizer.from_file(str(tokenizer_file))
    assert TextTokenizer(same, "other name").fingerprint == byte_level.fingerprint
    same.add_tokens(["new"])
    assert TextTokenizer(same, "small").fingerprint != byte_level.fingerprint


def test_t5_base_is_fetched_at_its_pinned_commit(tokenizer_file, tmp_path, monkeypatch):
    asked = []

    def fetch(repository, filename, revision, advice):
        asked.append((repository, filename, revision))
        return tokenizer_file

    monkeypatch.setattr(tokenizer_module, "fetch", fetch)
    assert load_tokenizer("auto", LOCAL, tmp_path).name == "t5-base"
    load_tokenizer("someone/model@abc", LOCAL, tmp_path)
    load_tokenizer("gpt2", LOCAL, tmp_path)
    assert asked == [
        ("google-t5/t5-base", "tokenizer.json", "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"),
        ("someone/model", "tokenizer.json", "abc"),
        ("gpt2", "tokenizer.json", None),
    ]


def test_wrong_files_are_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"data\.tokenizer='/no/such\.json': there is no such file"):
        load_tokenizer("/no/such.json", LOCAL, tmp_path)
    (tmp_path / "t.json").write_text('{"model":\n1}')
    with pytest.raises(UserError, match=r"cannot be read as a tokenizer\.json") as caught:
        load_tokenizer(str(tmp_path / "t.json"), LOCAL, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no such file"):  # a folder is none
        load_tokenizer(str(tmp_path), LOCAL, tmp_path)


def test_tokenizers_without_an_end_or_without_byte_lengths_are_refused():
    bare = Tokenizer(models.BPE())
    with pytest.raises(UserError, match=r"tokenizer x has no end-of-text token; it needs one of </s>, "):
        TextTokenizer(bare, "x")
    bare.add_special_tokens(["</s>"])
    bare.model.dropout = 0.1
    with pytest.raises(UserError, match="tokenizer x leaves out merges at random"):
        TextTokenizer(bare, "x")
    bare.model.dropout = None
    bare.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match=r"tokenizer x is neither byte-level nor sentencepiece-like"):
        TextTokenizer(bare, "x")


def test_decoding_gives_the_text_back_without_the_end_token(byte_level):
    text = "a café — before noon"
    assert byte_level.decode(byte_level.encode([text])[0].tolist()) == text
