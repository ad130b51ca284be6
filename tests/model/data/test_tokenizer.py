import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from model.data.tokenizer import BPE, END, UNKNOWN, Bytes, Chars, UnknownCharacter, load_vocabulary

TRAIN = ["the cat sat on the mat", "the dog sat on the log", "a naïve café"] * 20
ODD = [
    "",
    " ",
    "plain",
    "tabs\tand\nlines \r\n",
    "日本語 🎉 é e\u0301",
    "\0\x7f\ufeff\uffff",
    "  a   b  ",
    "<|end|><unk>",
    "a http://x.y/é?<b>  https:// HTTPS://Z",
]


@pytest.mark.parametrize("section", [Bytes(), BPE(vocab_size=300), BPE(vocab_size=300, split_urls=True)], ids=str)
def test_bytes_and_bpe_give_back_any_text(section):
    vocabulary = section.train(TRAIN)
    for text, ids in zip(ODD, vocabulary.encode_batch(ODD), strict=True):
        assert vocabulary.decode(ids) == text
        assert vocabulary.count_unknown(ids) == 0
        assert END not in ids
        assert ids.max(initial=1) < vocabulary.vocab_size


@pytest.mark.parametrize("section", [Bytes(), Chars(), BPE(vocab_size=300)], ids=["bytes", "chars", "bpe"])
def test_a_vocabulary_read_back_from_json_is_the_same(section):
    vocabulary = section.train(TRAIN)
    again = load_vocabulary(vocabulary.to_json())
    assert again.vocab_size == vocabulary.vocab_size
    assert again.to_json() == vocabulary.to_json()
    for one, other in zip(vocabulary.encode_batch(TRAIN), again.encode_batch(TRAIN), strict=True):
        np.testing.assert_array_equal(one, other)


def test_end_tokens_decode_to_nothing():
    for section in (Bytes(), Chars(), BPE(vocab_size=300)):
        vocabulary = section.train(TRAIN)
        (ids,) = vocabulary.encode_batch(["the cat"])
        assert vocabulary.decode([END, *ids.tolist(), END]) == "the cat"


def test_bytes_are_the_byte_plus_one():
    vocabulary = Bytes().train([])
    assert vocabulary.vocab_size == 257
    assert vocabulary.encode_batch(["Aé"])[0].tolist() == [66, 0xC3 + 1, 0xA9 + 1]


def test_chars_are_sorted_and_others_are_unknown():
    vocabulary = Chars().train(["ca", "ab"])
    assert vocabulary.vocab_size == 5
    (ids,) = vocabulary.encode_batch(["abcé🎉 "])
    assert ids.tolist() == [2, 3, 4, UNKNOWN, UNKNOWN, UNKNOWN]
    assert vocabulary.count_unknown(ids) == 3
    assert vocabulary.decode(ids) == "abc\ufffd\ufffd\ufffd"


def test_without_an_id_for_others_the_characters_are_the_whole_vocabulary():
    vocabulary = Chars(unknown=False).train(["ca", "ab"])
    assert vocabulary.vocab_size == 1 + 3
    (ids,) = vocabulary.encode_batch(["abc"])
    assert ids.tolist() == [1, 2, 3]
    assert vocabulary.count_unknown(ids) == 0
    assert vocabulary.decode([END, 1, 2, 3, END]) == "abc"
    again = load_vocabulary(vocabulary.to_json())
    assert (again.vocab_size, again.to_json()) == (4, vocabulary.to_json())
    with pytest.raises(UnknownCharacter, match=r"the character 'é' \(U\+00E9\)"):
        again.encode_batch(["ab", "cé🎉"])


def test_a_plain_description_says_nothing_of_unknown_characters_or_urls():
    assert json.loads(Chars().train(["ab"]).to_json()) == {"name": "chars", "chars": "ab"}
    described = json.loads(BPE(vocab_size=257).train(["ab"]).to_json())
    assert described["tokenizer"]["pre_tokenizer"]["type"] == "ByteLevel"


LINKS = [f"see https://ab.cd/{i % 7} (or HTTP://ab.cd/x)https://ab.cd\tand more at ab.cd {i % 3}" for i in range(60)]


def test_no_token_crosses_the_border_of_a_url():
    vocabulary = BPE(vocab_size=400, split_urls=True).train(LINKS)
    for text in LINKS:
        (ids,) = vocabulary.encode_batch([text])
        assert vocabulary.decode(ids) == text
        lengths = [len(vocabulary.decode([i])) for i in ids]
        borders = {0, *np.cumsum(lengths).tolist()}
        for url in re.finditer(r"(?i)https?://\S+", text):
            assert set(url.span()) <= borders
    assert any(vocabulary.decode([i]) == "https" for i in ids), "URLs have tokens of their own"
    again = load_vocabulary(vocabulary.to_json())
    np.testing.assert_array_equal(again.encode_batch(LINKS)[3], vocabulary.encode_batch(LINKS)[3])


def test_without_setting_urls_apart_a_token_does_cross():
    vocabulary = BPE(vocab_size=400).train(LINKS)
    (ids,) = vocabulary.encode_batch(["see https://ab.cd"])
    assert 4 not in np.cumsum([len(vocabulary.decode([i])) for i in ids])


def test_bpe_reaches_the_size_asked_for_and_shortens_the_text():
    vocabulary = BPE(vocab_size=270).train(TRAIN)
    assert vocabulary.vocab_size == 270
    (ids,) = vocabulary.encode_batch(["the cat sat"])
    assert len(ids) < len("the cat sat")


def test_bpe_knows_every_byte_without_having_seen_it():
    vocabulary = BPE(vocab_size=257).train(["aaaa"])
    assert vocabulary.vocab_size == 257
    assert vocabulary.decode(vocabulary.encode_batch(["zß"])[0]) == "zß"


def test_bpe_trained_in_two_processes_is_the_same():
    # many pairs are equally frequent here: a tie broken by hash order would show
    program = (
        "from model.data.tokenizer import BPE; import random; r = random.Random(0);"
        "print(BPE(vocab_size=600).train([''.join(r.choices('abcdefgh ', k=80)) for _ in range(99)]).to_json())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "random"}
    runs = {subprocess.check_output([sys.executable, "-c", program], env=environment) for _ in range(3)}
    assert len(runs) == 1
    assert json.loads(runs.pop())["name"] == "bpe"


def test_reading_a_configuration_loads_no_heavy_library():
    program = (
        "import sys, model.data.corpus, model.data.tokenizer, model.data.prepare, model.data.ngrams;"
        "print({'torch', 'tokenizers', 'pandas', 'pyarrow', 'datasets', 'optuna'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"
