"""A condition is a label or a caption: dropout, guidance, negatives and debiasing take both, and
labels are what they were.
"""

import contextlib
import re

import pytest
import torch

from cfm_lite import draws, guidance, negatives, objective, samplers
from cfm_lite.errors import ConfigError
from cfm_lite.models import MLP, MMDiT, SiT, UNet
from cfm_lite.negatives import other_class, other_condition
from cfm_lite.objective import FlowMatching, Objective, Repulsion
from cfm_lite.paths import LINEAR, FlowSample
from cfm_lite.terms import ConditionRepulsion
from cfm_lite.training import Trainer


def mmdit(vocab_size=9, seed=0):
    torch.manual_seed(seed)
    return MMDiT(4, 2, 3, 16, 2, 2, context_dim=8, context_length=5, vocab_size=vocab_size)


X = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.1, 0.9, 6)
WORDS = torch.randint(1, 9, (6, 5), generator=torch.Generator().manual_seed(1))
FEATURES = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
LABELLED, Y = SiT(4, 2, 3, 16, 1, 2, num_classes=4), torch.tensor([0, 1, 2, 3, 0, 1])
CAPTIONS = pytest.mark.parametrize(("vocab_size", "y"), [(9, WORDS), (0, FEATURES)])


def test_the_null_condition_of_labels_is_the_number_of_classes():
    y = torch.tensor([0, 3, 2])
    for model in (
        SiT(4, 2, 1, 8, 1, 2, num_classes=4),
        MLP(2, num_classes=4),
        UNet(8, num_classes=4),
    ):
        assert model.null_condition(y).tolist() == [4, 4, 4]


@pytest.mark.parametrize("y", [torch.arange(6), WORDS, FEATURES])
def test_the_same_rows_are_dropped_whatever_the_condition_is(y):
    g = torch.Generator().manual_seed(7)
    seen, dropped = draws.drop_conditions(y, 0.5, torch.zeros_like(y) - 1, generator=g)
    labels = draws.drop_labels(torch.arange(6), 0.5, 6, generator=torch.Generator().manual_seed(7))
    assert torch.equal(dropped, labels == 6)
    assert 0 < int(dropped.sum()) < 6
    assert torch.equal(seen[~dropped], y[~dropped])
    assert bool((seen[dropped] == -1).all())


@CAPTIONS
def test_an_objective_drops_captions_in_training_alone(vocab_size, y):
    model, seen = mmdit(vocab_size), []
    if not vocab_size:
        model.null_context.normal_()
    forward = model.forward_features
    model.forward_features = lambda x, t, y=None, blocks=(): (
        seen.append(y),
        forward(x, t, y, blocks),
    )[1]
    built = Objective(model, label_dropout=0.5)
    built.train().at(0, 0)(X, y)
    built.eval().at(0, 0)(X, y)
    null = model.null_condition(y)
    empty = (seen[0] == null).flatten(1).all(1)
    assert 0 < int(empty.sum()) < 6
    assert torch.equal(seen[0][~empty], y[~empty])
    assert torch.equal(seen[1], y)


@CAPTIONS
def test_every_method_trains_on_captions(vocab_size, y):
    for terms in (
        [FlowMatching(), Repulsion(0.05)],
        [FlowMatching(), Repulsion(0.05, negatives=other_class)],
        [FlowMatching(), objective.Dispersive(0.5, block=1)],
        [FlowMatching(), objective.Contrastive(0.5, block=1)],
    ):
        trainer = Trainer(Objective(mmdit(vocab_size), terms=terms, shard=6))
        (log,) = trainer.run([(X, y)], 1)
        assert torch.isfinite(log["loss"])


@CAPTIONS
def test_another_class_is_another_caption(vocab_size, y):
    y = y.clone()
    y[3:] = y[0]  # two other captions, and four rows of one
    sample = FlowSample(X, X, T, X, torch.arange(6.0).reshape(6, 1, 1, 1).expand_as(X), y)
    for seed in range(20):
        u, keep = other_class(sample, generator=torch.Generator().manual_seed(seed))
        assert keep.all()
        picked = u[:, 0, 0, 0].long()
        assert not any(torch.equal(y[row], y[other]) for row, other in enumerate(picked))
    _, keep = other_class(sample._replace(y=y[:1].expand_as(y)))
    assert not keep.any()


@pytest.mark.parametrize(
    ("vocab_size", "y"),
    [
        (9, torch.tensor([0, 1])),
        (9, torch.tensor(1)),
        (9, WORDS[:, :4]),
        (9, FEATURES),
        (9, WORDS.bool()),
        (0, torch.tensor([0, 1])),
        (0, WORDS),
    ],
)
def test_there_is_no_empty_caption_for_what_is_no_caption(vocab_size, y):
    with pytest.raises(ConfigError, match=re.escape(f"y has shape {tuple(y.shape)}")):
        mmdit(vocab_size).null_condition(y)


@CAPTIONS
def test_captions_on_a_device_are_compared_without_a_read(vocab_size, y, monkeypatch):
    """torch.unique waits for the device, which must know how many captions there are."""
    meta = FlowSample(*(part.to("meta") for part in (X, X, T, X, X, y)))
    u, keep = other_class(meta)  # what has no values cannot be read
    assert (u.shape, keep.shape) == (X.shape, (6,))
    monkeypatch.setattr(negatives, "on_host", lambda x: False)
    monkeypatch.setattr(negatives, "_AT_ONCE", 6 * 6 * 2)  # in several parts
    test_another_class_is_another_caption(vocab_size, y)


@CAPTIONS
def test_guidance_moves_away_from_the_empty_caption_or_from_a_negative_prompt(vocab_size, y):
    model = mmdit(vocab_size).eval()
    v, other = model(X, T, y), y.flip(0)
    empty = model(X, T, model.null_condition(y))
    close = torch.testing.assert_close
    close(guidance.cfg(model, y, 3.0)(X, T), empty + 3 * (v - empty))
    against = model(X, T, other)
    close(guidance.cfg(model, y, 3.0, negative=other)(X, T), against + 3 * (v - against))
    one = model(X, T, other[:1].expand_as(y))
    close(guidance.cfg(model, y, 3.0, negative=other[:1])(X, T), one + 3 * (v - one))
    close(guidance.cfg(model, y, 1.0)(X, T), v)
    assert (
        samplers.sample(guidance.cfg(model, y, 2.0, (0.3, 0.9)), X, torch.linspace(0, 1, 4)).shape
        == X.shape
    )


def test_a_negative_label_is_one_to_move_away_from():
    model = SiT(4, 2, 3, 16, 1, 2, num_classes=4)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    v, against = model(X, T, y), model(X, T, torch.full_like(y, 2))
    guided = guidance.cfg(model, y, 2.0, negative=2)(X, T)
    torch.testing.assert_close(guided, against + 2 * (v - against))
    one = guidance.cfg(model, 1, 2.0, negative=2)(X, T)
    v = model(X, T, torch.full_like(y, 1))
    torch.testing.assert_close(one, against + 2 * (v - against))


@pytest.mark.parametrize(
    ("model", "y", "negative", "message"),
    [
        (mmdit(), WORDS, FEATURES, "negative has shape (6, 5, 8) and y shape (6, 5)"),
        (mmdit(), WORDS, WORDS[:, :4], "negative has shape (6, 4) and y shape (6, 5)"),
        (mmdit(0), FEATURES, FEATURES[..., :7], "negative has shape (6, 5, 7) and y shape"),
        (mmdit(), WORDS, WORDS[0], "negative has shape (5,); this model takes a caption"),
        (mmdit(), WORDS, WORDS[:2], "negative has 2 captions for 6 rows of x; give one caption"),
        (mmdit(), WORDS[:2], WORDS, "y has 2 captions for 6 rows of x; give one caption per row"),
        (LABELLED, Y, Y[:2], "negative has 2 labels for 6 rows of x; give one label per row"),
        (LABELLED, Y, Y.float(), "negative has dtype torch.float32; labels are integers"),
        (LABELLED, Y, Y + 9, "the labels of negative span [9, 12]"),
    ],
)
def test_a_negative_that_does_not_fit_is_named(model, y, negative, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        guidance.cfg(model, y, 2.0, negative=negative)(X, T)


def test_a_term_about_conditions_asks_for_conditions():
    objective = Objective(mmdit(), terms=(FlowMatching(), ConditionRepulsion(0.05)))
    with pytest.raises(
        ConfigError, match=r"other_condition needs y.*Give labels.*or captions"
    ) as e:
        objective(X)
    assert "in_batch" not in str(e.value)


@CAPTIONS
def test_guidance_and_debiasing_commute_for_captions_as_for_labels(vocab_size, y):
    model, mean = mmdit(vocab_size).double().eval(), torch.randn(3, 4, 4, dtype=torch.float64)
    x, t = X.double(), T.double()
    y = y if vocab_size else y.double()
    one = guidance.debias(guidance.cfg(model, y, 2.5), 0.2, mean)(x, t)
    # with a constant mean: debias is affine, and CFG's coefficients sum to 1
    null = model.null_condition(y)
    apart = [guidance.debias(guidance.conditional(model, c), 0.2, mean) for c in (y, null)]
    two = guidance.guide(*apart, 2.5)(x, t)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (mmdit(), torch.arange(6), "a caption for each row"),
        (mmdit(), WORDS[:2], "a caption for each row"),
        (mmdit(), WORDS.bool(), "a caption for each row"),
        (mmdit(0), WORDS.float(), "a caption for each row"),
        (mmdit(0), WORDS, "Encode the captions"),
        (mmdit(), FEATURES, "word numbers"),
        (SiT(4, 2, 3, 16, 1, 2, num_classes=4), WORDS, "one label per row"),
    ],
)
def test_the_wrong_kind_of_condition_is_refused(model, y, message):
    with pytest.raises(ConfigError, match=message):
        Objective(model)(X, y)
    with pytest.raises(ConfigError):
        guidance.cfg(model, y, 2.0)(X, T)


@CAPTIONS
def test_guidance_without_a_caption_asks_for_captions(vocab_size, y):
    with pytest.raises(ConfigError, match="needs captions, one per row or one for all") as told:
        guidance.cfg(mmdit(vocab_size), None, 2.0)
    assert "label" not in str(told.value)
    model = mmdit(vocab_size)
    assert guidance.cfg(model, y[:1], 2.0)(X, T).shape == X.shape  # what the message says to do
    assert guidance.conditional(model)(X, T).shape == X.shape
    with pytest.raises(ConfigError, match=r"needs labels, \(B,\) or one int"):
        guidance.cfg(LABELLED, None, 2.0)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("vocab_size", "y", "message"),
    [
        (9, FEATURES, "y has shape (6, 5, 8)"),
        (9, WORDS[:, :4], "y has shape (6, 4)"),
        (9, WORDS + 9, "y holds word numbers from 10 to 17"),
        (0, FEATURES[..., :7], "y has shape (6, 5, 7)"),
        (0, WORDS, "y has shape (6, 5)"),
    ],
)
def test_guidance_names_captions_that_do_not_fit_as_they_were_given(
    vocab_size, y, message, negative
):
    """The batch of guidance is twice as long, and nobody gave it."""
    away = {"negative": y} if negative else {}
    with pytest.raises(ConfigError, match=re.escape(message)):
        guidance.cfg(mmdit(vocab_size), y, 2.0, **away)(X, T)


def test_captions_are_paired_with_noise_as_labels_are():
    x0, x1, y = draws.minibatch_ot(torch.randn_like(X), X, WORDS)
    assert torch.equal(y, WORDS)
    assert torch.equal(x1, X)
    assert LINEAR.interpolate(x0, x1, T)[0].shape == X.shape


@CAPTIONS
def test_the_other_condition_is_that_of_the_row_that_other_class_takes(vocab_size, y):
    rows = torch.arange(6.0).reshape(6, 1, 1, 1).expand_as(X)
    sample = FlowSample(X, X, T, X, rows, y)
    u, kept = other_class(sample, generator=torch.Generator().manual_seed(0))
    wrong, keep = other_condition(sample, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wrong, y[u[:, 0, 0, 0].long()])
    assert torch.equal(keep, kept)


@pytest.mark.parametrize("y", [WORDS, FEATURES, torch.tensor([0, 1, 1, 0, 2, 2])])
def test_contrast_by_condition_repels_from_what_the_network_makes_of_another_condition(y):
    """|v - u|^2 - λ |v - sg v(x_t, t, c̃)|^2, and its gradient with the second velocity held."""
    model = {1: SiT(4, 2, 3, 16, 2, 2, num_classes=3), 2: mmdit(), 3: mmdit(vocab_size=0)}[y.dim()]
    for parameter in model.parameters():  # a SiT starts without a trace of its label
        torch.nn.init.normal_(parameter, std=0.1)
    built = Objective(model, terms=(FlowMatching(), ConditionRepulsion(0.3)), label_dropout=0.0)
    sample, prepared, _ = built.at(0, 0)._draw(X, y)
    wrong, keep = prepared["condition_repulsion"]
    assert keep.all()
    graphs = []
    with hooked(model, graphs):
        loss, logged = built.at(0, 0)(X, y)
    assert graphs == [True, False]  # the own velocity is computed without a graph
    v = model(sample.x_t, sample.t, sample.y)
    own = model(sample.x_t, sample.t, wrong).detach()
    expected = (v - sample.u_t).square().mean() - 0.3 * (v - own).square().mean()
    torch.testing.assert_close(loss, expected)
    assert logged["condition_repulsion"] > 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, wanted in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
    ):
        torch.testing.assert_close(got, wanted)


@contextlib.contextmanager
def hooked(model, graphs):
    """Notes for each forward pass of the model whether it records a graph."""
    watch = model.final_layer.register_forward_hook(
        lambda *_: graphs.append(torch.is_grad_enabled())
    )
    yield
    watch.remove()


def test_contrast_by_condition_settles_at_guidance_that_is_trained_in():
    """Each of n conditions meets any of the others: 1 / (1 - λn / (n - 1)) away from their mean."""
    weight, n = 0.3, 4
    u, others = torch.randn(n, 2, dtype=torch.float64), (1 - torch.eye(n).double()) / (n - 1)
    v = torch.zeros(n, 2, dtype=torch.float64)
    for _ in range(500):  # minus half of the gradient of |v - u|^2 - λ |v - sg v(c̃)|^2
        v = v - 0.5 * ((v - u) - weight * (v - others @ v))
    wanted = u.mean(0) + (u - u.mean(0)) / (1 - weight * n / (n - 1))
    torch.testing.assert_close(v, wanted)


def test_contrast_by_condition_needs_its_weight_below_that_of_flow_matching():
    with pytest.raises(ConfigError, match="λK"):
        Objective(mmdit(), terms=(FlowMatching(), ConditionRepulsion(1.0)))


def test_rows_without_another_condition_are_not_repelled():
    y = WORDS[:1].expand_as(WORDS)
    built = Objective(mmdit(), terms=(FlowMatching(), ConditionRepulsion(0.3)), label_dropout=0.0)
    loss, logged = built(X, y)
    assert logged["condition_repulsion_left_out"] == 6
    assert loss == logged["flow_matching"]


def step(build):
    """The loss of a first step on captions `y`."""
    return lambda model, y: build(model, label_dropout=0.5).at(0, 0)(X, y)[0]


READERS = {
    "the network": lambda model, y: model(X, T, y),
    "fm": step(objective.fm),
    "delta_fm": step(objective.delta_fm),
    "ConditionRepulsion": step(
        lambda *given, **how: objective.fm(*given, **how).plus(ConditionRepulsion(0.1))
    ),
    "cfg": lambda model, y: guidance.cfg(model, y, 2.0, negative=y)(X, T),
    "other_condition": lambda model, y: other_condition(FlowSample(X, X, T, X, X, y))[0].long(),
    "a label": lambda model, y: other_condition(FlowSample(X, X, T, X, X, y[:, 0].contiguous()))[
        0
    ].long(),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32"])
def test_word_numbers_of_any_integer_kind_are_the_same_caption(name, kind):
    expected = READERS[name](mmdit(), WORDS)
    assert torch.equal(READERS[name](mmdit(), WORDS.to(getattr(torch, kind))), expected)
