"""MMDiT: the size of the papers' network, the order of its tokens, what a caption can do, and what
it refuses.
"""

import json

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap

from cfm_lite.errors import ConfigError
from cfm_lite.models import MMDiT, count_parameters
from cfm_lite.models import mmdit as module
from cfm_lite.models.embed import rotary_2d, rotate
from cfm_lite.models.mmdit import JointBlock
from tests.networks import kept_bytes

TINY = {
    "input_size": 4,
    "patch_size": 2,
    "in_channels": 3,
    "hidden_size": 16,
    "depth": 3,
    "num_heads": 2,
    "context_dim": 8,
    "context_length": 5,
}
WORDS = {**TINY, "vocab_size": 9}


def tiny(**changes) -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT(**{**WORDS, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def batch(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 3, 4, 4, generator=g, dtype=dtype),
        torch.rand(2, generator=g, dtype=dtype),
        torch.randint(1, 9, (2, 5), generator=g),
    )


def test_without_arguments_it_is_the_network_of_the_papers():
    with torch.device("meta"):
        model = MMDiT()
    assert count_parameters(model) == (505_070_608, 505_070_608)  # positions are a buffer
    assert model.pos_embed.shape == (1, 256, 768)
    assert model.null_context.shape == (77, 768)


def test_nothing_is_zeroed_unless_asked_and_then_the_output_is_zero():
    given = batch()
    assert MMDiT(**WORDS)(*given).any()
    started = MMDiT(**WORDS, zero_init=True)
    assert not started(*given).any()
    assert MMDiT(**TINY).blocks[0].image.adaLN_modulation[1].bias.any()


def test_the_caption_stands_before_the_image_and_all_tokens_attend_to_all(monkeypatch):
    seen = []
    attend = module.attend

    def watched(q, k, v):
        seen.append((q, k, v))
        return attend(q, k, v)

    monkeypatch.setattr(module, "attend", watched)
    block = JointBlock(16, 2, 4.0, pre_only=False)
    h, s, c = torch.randn(2, 4, 16), torch.randn(2, 5, 16), torch.randn(2, 16)
    block(h, s, c)
    ((q, k, v),) = seen
    assert q.shape == k.shape == v.shape == (2, 2, 9, 8)
    torch.testing.assert_close(q[:, :, :5], block.text.before(s, c)[0])
    torch.testing.assert_close(q[:, :, 5:], block.image.before(h, c)[0])
    torch.testing.assert_close(v[:, :, 5:], block.image.before(h, c)[2])
    moved = torch.cat([-s[:, :1], s[:, 1:]], dim=1)  # a norm would undo a shift
    assert ((block(h, moved, c)[0] - block(h, s, c)[0]).abs().amax(-1) > 0).all()


def test_the_last_block_reads_the_caption_and_returns_none():
    model = tiny()
    *others, last = model.blocks
    assert last.text.pre_only
    assert not any(block.text.pre_only for block in others)
    assert {name.split(".")[0] for name, _ in last.text.named_parameters()} == {
        "qkv",
        "adaLN_modulation",
    }
    v = model(*batch())
    v.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_caption_is_words_in_order_and_none_is_the_empty_one():
    model, (x, t, y) = tiny(), batch()
    v = model(x, t, y)
    assert not torch.allclose(v, model(x, t, y.flip(1)))
    empty = model(x, t, torch.zeros_like(y))
    torch.testing.assert_close(model(x, t), empty, rtol=0, atol=0)
    torch.testing.assert_close(model(x, t, model.null_condition(y)), empty, rtol=0, atol=0)


def test_a_caption_can_be_the_features_of_a_frozen_encoder():
    model, (x, t, _) = tiny(vocab_size=0), batch()
    y = torch.randn(2, 5, 8)
    model.null_context.normal_()
    torch.testing.assert_close(model(x, t), model(x, t, model.null_condition(y)), rtol=0, atol=0)
    assert not torch.allclose(model(x, t), model(x, t, y))
    assert "null_context" in model.state_dict()
    assert "null_context" not in tiny().state_dict()


def test_features_are_the_image_tokens_of_the_blocks():
    v, features = tiny().forward_features(*batch(), blocks=(1, 3))
    assert v.shape == (2, 3, 4, 4)
    assert {number: h.shape for number, h in features.items()} == dict.fromkeys((1, 3), (2, 4, 16))


def test_config_builds_the_same_model_again():
    model = tiny(zero_init=True)
    again = MMDiT(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(*batch()), model(*batch()), rtol=0, atol=0)


def test_a_turned_query_meets_a_key_by_where_it_lies_from_it_and_captions_stay(monkeypatch):
    cos, sin = rotary_2d(8, 4)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    scores = rotate(q.expand(16, 8), cos, sin) @ rotate(k.expand(16, 8), cos, sin).T
    scores = scores.unflatten(0, (4, 4)).unflatten(2, (4, 4))  # row, column; row, column
    torch.testing.assert_close(scores[1:, :, 1:], scores[:-1, :, :-1])
    torch.testing.assert_close(scores[:, 1:, :, 1:], scores[:, :-1, :, :-1])
    torch.testing.assert_close(scores[0, 0, 0, 0], q @ k)
    assert not torch.isclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0])

    model, (x, t, y) = tiny(rotary=True), batch()
    assert not torch.allclose(model(x, t, y), tiny()(x, t, y))
    assert model.state_dict().keys() == tiny().state_dict().keys()
    seen = []
    attend = module.attend
    monkeypatch.setattr(module, "attend", lambda *qkv: seen.append(qkv) or attend(*qkv))
    block, turn = JointBlock(16, 2, 4.0, pre_only=False), tuple(a.float() for a in rotary_2d(8, 2))
    h, s, c = torch.randn(2, 4, 16), torch.randn(2, 5, 16), torch.randn(2, 16)
    block(h, s, c), block(h, s, c, turn)
    (q, k, v), (turned_q, turned_k, turned_v) = seen
    torch.testing.assert_close(turned_v, v, rtol=0, atol=0)
    for plain, turned in ((q, turned_q), (k, turned_k)):
        torch.testing.assert_close(turned[:, :, :6], plain[:, :, :6], rtol=0, atol=0)
        torch.testing.assert_close(turned[:, :, 5:], rotate(plain[:, :, 5:], *turn))
        assert not torch.allclose(turned[:, :, 6:], plain[:, :, 6:])


def test_words_stay_apart_at_the_start():
    """Each has a vector of unit size, so that no block's common part hides which word it is."""
    model = MMDiT(**{**WORDS, "vocab_size": 60, "context_dim": 64}, zero_init=True)
    for table in (model.words.table.weight, model.words.position):
        assert abs(table.std() - 1) < 0.1


def test_the_mean_of_a_caption_modulates_every_block_and_its_scale_does_not_matter():
    model, (x, t, y) = tiny(pooled=True), batch()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    model(x, t, y)
    said = model.words(y, x).mean(1)
    wanted = model.t_embedder(t) + model.pool_embedder(
        (said - said.mean(1, keepdim=True))
        / (said.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    )
    for c in seen:
        torch.testing.assert_close(c, wanted)
    assert len(seen) == 3
    features = torch.randn(2, 5, 8)
    frozen = tiny(pooled=True, vocab_size=0)
    kept = frozen.pool_embedder(torch.nn.functional.layer_norm(features.mean(1), (8,)))
    found = []
    frozen.blocks[0].register_forward_pre_hook(lambda _, given: found.append(given[2]))
    frozen(x, t, 1000 * features)
    torch.testing.assert_close(found[0], frozen.t_embedder(t) + kept, rtol=1e-4, atol=1e-4)


def test_phrases_tell_a_word_by_its_neighbours_so_the_mean_hears_their_order():
    """The mean of words and positions is the same in any order: no caption is heard by it alone."""
    y = torch.tensor([[1, 2, 3, 4, 5]])
    exchanged, x = y[:, [2, 1, 0, 3, 4]], torch.zeros(1, 3, 4, 4)
    for phrases, same in ((0, True), (1, False), (2, False)):
        words = tiny(phrases=phrases, context_dim=32).words
        means = words(y, x).mean(1), words(exchanged, x).mean(1)
        assert torch.allclose(*means, atol=1e-6) is same
        far = (words(y, x) - words(y[:, [0, 1, 2, 3, 3]], x)).abs().amax(2)[0]
        assert (far > 0).tolist() == [place >= 4 - phrases for place in range(5)]
    phrase, said = words.phrases[1], words.table(y) + words.position
    words.phrases = words.phrases[1:]
    normed = torch.nn.functional.layer_norm(said, (32,))
    padded = torch.nn.functional.pad(normed, (0, 0, 1, 1))
    wanted = sum(padded[:, k : k + 5] @ phrase.weight[:, :, k].T for k in range(3)) + phrase.bias
    torch.testing.assert_close(words(y, x), said + torch.nn.functional.gelu(wanted))


ADDED = [{}, {"rotary": True}, {"pooled": True}, {"phrases": 2}]


@pytest.mark.parametrize("added", [*ADDED, {"vocab_size": 0}])
@pytest.mark.parametrize("half", [False, True])
def test_checkpointing_changes_neither_velocity_features_nor_gradients(half, added):
    model, (x, t, y), kept = tiny(**added), batch(), []
    said = y if model.vocab_size else torch.randn(2, 5, 8)
    for model.checkpointing in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            v, features = model.forward_features(x, t, said, blocks=(1, 3))
        loss = v.float().square().mean() + features[1].float().mean() * features[3].float().var()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        kept.append([v, *features.values(), *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*kept))


def test_checkpointing_keeps_only_the_inputs_of_the_blocks():
    model = MMDiT(**{**WORDS, "input_size": 8, "hidden_size": 32, "depth": 4})
    given = torch.randn(2, 3, 8, 8), torch.rand(2), batch()[2]
    assert kept_bytes(model, given, again=True) < 0.25 * kept_bytes(model, given)


@pytest.mark.parametrize("added", ADDED)
def test_transforms_of_torch_func_agree_with_plain_autograd(added):
    model, (x, t, y) = tiny(**added).double(), batch(torch.float64)
    model.checkpointing = True

    def loss(x):
        return model(x, t, y).square().sum()

    free = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(free), free)
    torch.testing.assert_close(grad(loss)(x), slope)
    torch.testing.assert_close(jvp(loss, (x,), (x,)), (loss(x), (slope * x).sum()))
    both = torch.stack([x, x + 1])
    each = torch.stack([model(a, t, y) for a in both])
    torch.testing.assert_close(vmap(lambda x: model(x, t, y))(both), each)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18, "num_heads": 4}, "num_heads"),
        ({"hidden_size": 18}, "multiple of 4"),
        ({"input_size": 5}, "patch_size"),
        ({"depth": 0}, "depth"),
        ({"context_length": 0}, "context_length"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"zero_init": "yes"}, "zero_init"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"rotary": "yes"}, "rotary"),
        ({"pooled": "yes"}, "pooled"),
        ({"phrases": -1}, "phrases"),
        ({"phrases": 2, "vocab_size": 0}, "vocab_size, or leave phrases out"),
        ({"rotary": True, "hidden_size": 12}, "multiple of 8, .* such as 16"),
        ({"rotary": True, "hidden_size": 9}, "multiple of 8, .* such as 16"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MMDiT(**{**TINY, **changes})


X, T, Y = batch()


@pytest.mark.parametrize(
    ("sizes", "y", "message"),
    [
        (WORDS, Y[:1], r"\(2, 5\)"),
        (WORDS, Y[:, :4], r"\(2, 5\)"),
        (WORDS, Y.float(), "whole"),
        (WORDS, Y + 9, r"\[0, 8\]"),
        (WORDS, Y - 9, r"\[0, 8\]"),
        (TINY, Y, r"floating, \(B, 5, 8\)"),
        (TINY, torch.randn(2, 5, 7), r"\(B, 5, 8\)"),
        (TINY, torch.randn(3, 5, 8), "one for each"),
        (TINY, torch.randn(2, 4, 8), "Encode the captions"),
        (TINY, ["a red seven"] * 2, "type list.*Encode the captions"),
        (TINY, torch.randn(2, 5, 8).tolist(), "type list.*Encode the captions"),
        (TINY, torch.tensor(1.0), r"shape \(\).*Encode the captions"),
        (TINY, torch.randn(2, 5, 8).to("meta"), "y is on meta and x on cpu"),
        (WORDS, ["a red seven"] * 2, r"type list.*whole, \(2, 5\)"),
        (WORDS, Y.to("meta"), "y is on meta and x on cpu"),
    ],
)
def test_captions_that_do_not_fit_are_refused(sizes, y, message):
    with pytest.raises(ConfigError, match=message):
        MMDiT(**sizes)(X, T, y)
