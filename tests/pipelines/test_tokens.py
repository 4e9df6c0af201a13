import gzip
import math

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.tokens import MarkovChain, Text, split_files, text_files


def drawn(chain, rows=200, length=101, seed=0):
    return chain.sequences(rows, length, np.random.default_rng(seed))


def test_tokens_follow_the_transition_matrix():
    chain = MarkovChain(states=8, tau=0.3)
    tokens = drawn(chain, rows=2000)
    counts = np.zeros((8, 8))
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), chain.transitions, atol=0.015)
    np.testing.assert_allclose(np.bincount(tokens[:, 0], minlength=8) / 2000, chain.stationary, atol=0.04)
    assert set(np.unique(tokens)) == set(range(8))


@pytest.mark.parametrize(("tau", "nats"), [(1.0, 4.565), (0.1, 3.31)])
def test_entropy_of_a_hundred_states(tau, nats):
    chain = MarkovChain(states=100, tau=tau)
    assert chain.entropy == pytest.approx(nats, abs=0.02)
    tokens = drawn(chain)
    surprise = -np.log(chain.transitions[tokens[:, :-1], tokens[:, 1:]])
    assert surprise.mean() == pytest.approx(chain.entropy, abs=0.02)


def test_independent_tokens_are_uniform():
    chain = MarkovChain(states=10, order="iid")
    assert chain.entropy == pytest.approx(math.log(10))
    assert np.allclose(chain.transitions, 0.1)


def test_sequences_depend_on_the_generator_alone_and_the_chain_on_its_seed():
    one, other = MarkovChain(10, 0.1), MarkovChain(10, 0.1)
    assert np.array_equal(drawn(one), drawn(other))
    assert not np.array_equal(drawn(one), drawn(one, seed=1))
    assert not np.allclose(one.transitions, MarkovChain(10, 0.1, seed=1).transitions)


def test_stationary_distribution_by_hand():
    chain = MarkovChain(2, 1.0)
    p, q = chain.transitions[0, 1], chain.transitions[1, 0]
    np.testing.assert_allclose(chain.stationary, [q / (p + q), p / (p + q)])


@pytest.mark.parametrize("bad", [{"order": "bigram"}, {"states": 1}, {"states": 10**6}, {"tau": 0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(DataError, match="expected"):
        MarkovChain(**bad)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("aaab")
    with gzip.open(tmp_path / "deep" / "b.rst.gz", "wb") as file:
        file.write(b"ccc")
    (tmp_path / "picture.png").write_bytes(b"no text")
    return tmp_path


def test_text_is_read_in_order_with_a_zero_between(folder):
    text = Text(text_files(folder))
    assert text.tokens.tobytes() == b"aaab\0ccc\0"
    found = text.sequences(50, 3, np.random.default_rng(0))
    assert {bytes(row.astype(np.uint8)) for row in found} <= {text.tokens[i : i + 3].tobytes() for i in range(7)}
    assert Text(text_files(folder), limit_mb=5 / 2**20).tokens.tobytes() == b"aaab\0"


def test_a_tokenizer_of_hugging_face(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"aaab": 0, "ccc": 1, "?": 2, "<end>": 3}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(tmp_path / "tokenizer")
    (folder / "c.md").write_text("ccc aaab dd")
    text = Text(text_files(folder), tokenizer=tmp_path / "tokenizer")
    assert text.vocabulary == 4 and text.tokens.tolist() == [0, 3, 1, 0, 2, 3, 1, 3]  # a.txt, c.md, deep/b.rst.gz
    with pytest.raises(DataError, match="cannot be read"):
        Text(text_files(folder), tokenizer=tmp_path / "missing")


def test_loss_of_whoever_knows_the_frequencies_only():
    text = Text([])
    text.tokens = np.frombuffer(b"aaab", np.uint8)
    assert text.vocabulary == 256
    known = (4 / 260, 2 / 260)  # one count added to each of 256
    expected = -(3 * math.log(known[0]) + math.log(known[1])) / 4
    assert text.references()["frequencies_only"] == pytest.approx(expected)


def test_whole_files_are_held_out():
    files = list("abcdefghij")
    train, held = split_files(files, 0.2)
    assert sorted(train + held) == files and len(held) == 2
    assert split_files(files, 0.2) == (train, held)
    with pytest.raises(DataError, match="leaves one part empty"):
        split_files(["one"], 0.1)


def test_bad_text(folder, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        text_files(folder / "missing")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no text files"):
        text_files(folder / "empty")
    with pytest.raises(DataError, match="a sequence needs 50"):
        Text(text_files(folder)).sequences(1, 50, np.random.default_rng(0))
    packed = folder / "deep" / "b.rst.gz"
    packed.write_bytes(packed.read_bytes()[:-6])
    with pytest.raises(DataError, match="damaged"):
        Text(text_files(folder))
