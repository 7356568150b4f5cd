"""kimi_mini's training code at toy size, and the committed checkpoint against its bars."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import deepseek_v3
from mlx_lm.models.switch_layers import SwitchGLU

from experiments.kimi_mini import corpus, modules, optimiser, proof, routing, tokenizer, train

SENTENCE = "The channel brings water to the mill wheel {} times a day, and the miller counts {} sacks. "
TEXT = [SENTENCE.format(n, 3 * n) * 4 for n in range(60)]
RECIPE = train.Recipe(batch=4, context=32, learning_rate=4e-3, dtype="float32", locality=0.02)


@pytest.fixture(autouse=True)
def stock_mlx_lm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training swaps mlx-lm's attention function: put it back. On a CPU compiling a step takes longer than the test."""
    monkeypatch.setattr(deepseek_v3, "scaled_dot_product_attention", deepseek_v3.scaled_dot_product_attention)
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_permuted_experts_equal_mlx_lm() -> None:
    mx.random.seed(0)
    switch = SwitchGLU(16, 24, 6)
    permuted = modules.PermutedSwitchGLU(switch, capacity_factor=6)
    x, probe = mx.random.normal((3, 10, 16)), mx.random.normal((3, 10, 2, 16))
    indices = mx.argsort(mx.random.uniform(shape=(3, 10, 6)), axis=-1)[..., :2]
    assert mx.allclose(permuted(x, indices), switch(x, indices), atol=1e-5)

    def gradients(module: nn.Module) -> tuple[mx.array, dict[str, mx.array]]:
        by_input = mx.grad(lambda x: (module(x, indices) * probe).sum())(x)
        by_weight = nn.value_and_grad(module, lambda: (module(x, indices) * probe).sum())()[1]
        return by_input, dict(tree_flatten(by_weight))

    (dx, dw), (expected_dx, expected_dw) = gradients(permuted), gradients(switch)
    assert mx.allclose(dx, expected_dx, atol=1e-5)
    assert dw.keys() == expected_dw.keys()
    assert all(mx.allclose(dw[name], expected_dw[name], atol=1e-5) for name in dw)


def test_pairs_beyond_the_capacity_give_zero() -> None:
    permuted = modules.PermutedSwitchGLU(SwitchGLU(16, 24, 4), capacity_factor=1)
    x = mx.random.normal((1, 8, 16))
    y = permuted(x, mx.zeros((1, 8, 1), dtype=mx.int32))  # all want expert 0, which holds 8 / 4
    assert [bool(row.any()) for row in mx.abs(y[0, :, 0]) > 0] == [True] * 2 + [False] * 6


def test_orthogonal_has_singular_values_near_one() -> None:
    values = np.linalg.svd(np.array(optimiser.orthogonal(mx.random.normal((2, 48, 16)))), compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.5


def test_rate_warms_up_and_ends_at_zero() -> None:
    rates = [optimiser.rate_at(share, 4e-3, 0.02) for share in (0.0, 0.01, 0.02, 0.5, 1.0)]
    assert rates[0] == 0 and rates[1] < rates[2] > rates[3] and rates[4] == pytest.approx(0)


def test_toy_training_writes_what_stock_mlx_lm_opens(tmp_path: Path) -> None:
    bpe = tokenizer.train_tokenizer(TEXT, vocab_size=512)
    tokenizer.save_tokenizer(bpe, tmp_path)
    tokens = tokenizer.encode(bpe, TEXT)
    config = train.TOY | {"vocab_size": 512}
    log = train.train(config, RECIPE, tokens, (tokens[:400], 1200), minutes=0.08, out=tmp_path, log_every_s=1)
    assert log[-1]["train_nats_per_token"] < log[0]["train_nats_per_token"] < math.log(512)
    assert (tmp_path / "training_log.csv").read_text().count("\n") == len(log) + 1

    stock, text = mlx_lm.load(str(tmp_path))[:2]
    assert text.decode(text.encode(TEXT[3])) == TEXT[3] and text.eos_token_id == tokenizer.END_OF_TEXT_ID
    stock.set_dtype(mx.float32)
    # Room for every token: after few steps on a slow machine routing is uneven, and training would drop what is beyond.
    roomy = replace(RECIPE, capacity_factor=float(config["n_routed_experts"]))
    same = roomy.model(config)
    weights = dict(tree_flatten(stock.parameters()))
    biases = mx.stack([weights.pop(name) for name in sorted(weights) if name.endswith("e_score_correction_bias")])
    assert mx.abs(biases).max() > 0
    inputs = mx.array(tokens[None, :33].astype(np.int32))
    train.forward(same, weights, biases, inputs, roomy)  # puts the weights in
    assert mx.allclose(same(inputs), stock(inputs), atol=1e-4)


def test_lru_hit_rate() -> None:
    repeating = np.tile([[[0, 1]]], (10, 1, 1))
    assert routing.lru_hit_rate(repeating, 2) == 18 / 20
    cycling = np.arange(12).reshape(12, 1, 1) % 3
    assert routing.lru_hit_rate(cycling, 2) == 0 and routing.lru_hit_rate(cycling, 3) == 9 / 12
    assert routing.expert_loads(cycling, 4).tolist() == [[1 / 3, 1 / 3, 1 / 3, 0]]


def test_windows_score_every_token_once() -> None:
    for length in (2, 300, 513, 514, 1500):
        stream = np.arange(length)
        scored = np.concatenate([window[-count:] for window, count in proof.windows(stream)])
        assert scored.tolist() == list(range(1, length))


def test_corpus_readers() -> None:
    body = "<h1>Title</h1><p>One &amp;\n two</p><pre>a\n  b</pre><ul><li>i<li>j</ul>"
    page = f'<head>x</head><div role="main">{body}</div><footer>z</footer>'
    assert corpus.clean(corpus.html_text(page)) == ["Title", "One & two", "a\n  b", "- i\n- j"]
    assert corpus.go_text("// Add adds\n// two.\nfunc Add(a int)\n") == "Add adds\ntwo.\nfunc Add(a int)\n"
    assert "a bold word" in corpus.man_text(".TH X\n.SH NAME\na \\fBbold\\fR word\n.PP\nx")
    long = "word " * 100
    kept = corpus.once([("a", [long]), ("b", [long, "other " * 60])], set())
    assert [text for _, text in kept] == [long, "other " * 60]
    assert corpus.novel([long + "unique", "nothing " * 20], ["nothing " * 20]) == [long + "unique"]


# --- the committed checkpoint ---

needs_checkpoint = pytest.mark.skipif(not (proof.CHECKPOINT / "config.json").exists(), reason="no checkpoint trained yet")


@needs_checkpoint
def test_checkpoint_meets_the_sizes() -> None:
    config = json.loads((proof.CHECKPOINT / "config.json").read_text())
    assert config["num_hidden_layers"] - config["first_k_dense_replace"] >= 6
    assert config["n_routed_experts"] >= 48 and config["num_experts_per_tok"] >= 4
    shards = sorted(proof.CHECKPOINT.glob("*.safetensors"))
    assert all(shard.stat().st_size <= 16e6 for shard in shards)
    assert sum(file.stat().st_size for file in proof.CHECKPOINT.iterdir()) <= 48e6
    experts: dict[str, list[tuple[int, int, str]]] = {}
    parameters = 0
    for shard in shards:
        raw = shard.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            parameters += math.prod(entry["shape"])
            assert entry["dtype"] == ("F32" if name.endswith("e_score_correction_bias") else "BF16")
            if ".experts." in name:
                experts.setdefault(name.rsplit(".", 2)[0], []).append((*entry["data_offsets"], shard.name))
    assert 15e6 <= parameters <= 30e6
    assert len(experts) >= 6 * 48
    for parts in experts.values():  # one expert is one byte range of one file
        parts.sort()
        assert len(parts) == 3 and len({file for *_, file in parts}) == 1
        assert all(before[1] == after[0] for before, after in pairwise(parts))


@needs_checkpoint
def test_checkpoint_beats_xz_on_a_sample_of_the_held_out_text() -> None:
    model, text = proof.load()
    documents = proof.held_out_documents()
    text_bytes = sum(len(document.encode()) for document in documents)
    stream = proof.token_stream(text, documents)
    assert proof.token_bytes(text)[stream].sum() == text_bytes
    parts = proof.spread(proof.windows(stream), 2_500 / text_bytes)
    size = sum(proof.token_bytes(text)[window[-count:]].sum() for window, count in parts)
    assert text.decode(text.encode(documents[0])) == documents[0]
    nats = sum(proof.nats_of(logp, targets) for logp, targets in proof.log_probabilities(model, parts))
    bits = nats / math.log(2) / size
    assert bits <= 0.75 * proof.xz_bits_a_byte(documents)


@needs_checkpoint
def test_trace_has_the_locality_of_real_models() -> None:
    ids, experts = proof.read_trace()
    assert 0.45 <= routing.lru_hit_rate(ids, experts // 4) <= 0.85
    assert proof.TRACE.stat().st_size < 1e6
