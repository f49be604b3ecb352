"""Objectives: sums of terms, paired draws, shards, and what they refuse."""

import functools
import math

import numpy as np
import pytest
import torch

from cfm_lite import draws, losses, negatives, objective, perturbations
from cfm_lite.errors import ConfigError
from cfm_lite.models import MLP, SiT
from cfm_lite.objective import (
    Alignment,
    Contrastive,
    Dispersive,
    FlowMatching,
    Objective,
    Repulsion,
)
from cfm_lite.paths import COSINE, LINEAR, VP, FlowSample
from cfm_lite.terms import ConditionRepulsion
from tests.networks import Tiny

X1 = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(24) % 3


def zero_weight_terms():
    return [
        Repulsion(0.0),
        Repulsion(0.0, negatives.other_class),
        Repulsion(0.0, negatives.perturbed(perturbations.channel_shuffle)),
        Repulsion(0.0, negatives.perturbed(perturbations.additive_noise, space="latent", k=2)),
        Dispersive(0.0, block=1),
        Dispersive(0.0, block=2, variant="covariance"),
        Contrastive(0.0, block=1),
        Contrastive(0.0, block=2, views="restricted", variant="hinge"),
        Alignment(0.0, 1, 16, lambda x: x[:, None], 2, width=8),
    ]


def built_names(values):
    """The terms among the logged values; what counts rows is not a term."""
    return [name for name in values if not name.endswith("_left_out")]


def gradients(built):
    total, values = built.at(3, 7)(X1, Y)
    built.zero_grad()
    total.backward()
    return (
        total.detach(),
        {name: p.grad.clone() for name, p in built.model.named_parameters()},
        values,
    )


@pytest.mark.parametrize("index", range(9))
@pytest.mark.parametrize("shard", [None, 8])
def test_weight_zero_is_plain_flow_matching(index, shard):
    term = zero_weight_terms()[index]
    plain_total, plain, _ = gradients(Objective(Tiny(), shard=shard))
    total, grads, values = gradients(Objective(Tiny(), terms=(FlowMatching(), term), shard=shard))
    assert torch.equal(total, plain_total)
    assert all(torch.equal(grads[name], plain[name]) for name in plain)
    assert len(built_names(values)) == 2
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("term", [Contrastive(0.0, 1), ConditionRepulsion(0.0)])
def test_weight_zero_leaves_the_draws_and_statistics_of_the_network_alone(term):
    def trained(terms):
        model = Tiny()
        model.second = torch.nn.Sequential(
            model.second, torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5)
        )
        built = Objective(model, terms=terms)
        torch.manual_seed(0)
        totals = [built.at(0, step)(X1, Y)[0] for step in range(3)]
        return torch.stack(totals), torch.get_rng_state(), *model.state_dict().values()

    alone, beside = trained((FlowMatching(),)), trained((FlowMatching(), term))
    assert all(torch.equal(*pair) for pair in zip(alone, beside))


@pytest.mark.parametrize("index", range(9))
def test_a_positive_weight_changes_the_gradient(index):
    term = zero_weight_terms()[index]
    changed = term if isinstance(term, Alignment) else type(term)(**{**vars(term), "weight": 0.2})
    if isinstance(term, Alignment):
        changed.weight = 0.2
    _, plain, _ = gradients(Objective(Tiny()))
    _, grads, _ = gradients(Objective(Tiny(), terms=(FlowMatching(), changed)))
    assert any(not torch.equal(grads[name], plain[name]) for name in plain)


def test_the_total_is_the_signed_weighted_sum_of_the_unweighted_values():
    terms = (FlowMatching(2.0), Repulsion(0.3), Dispersive(0.5, block=1))
    total, values = Objective(Tiny(), terms=terms).at(0, 0)(X1, Y)
    expected = (
        2.0 * values["flow_matching"] - 0.3 * values["repulsion"] + 0.5 * values["dispersive"]
    )
    torch.testing.assert_close(total, expected)
    assert values["repulsion"] > 0


def test_the_objective_agrees_with_the_plain_functions_on_its_own_draw():
    model = Tiny()
    built = objective.delta_fm(model, 0.2, label_dropout=0.0).at(1, 2)
    total, _ = built(X1, Y)
    g = draws.keyed_generator("cpu", 1, 2, 0, "draw")
    x0 = torch.randn(24, 2, generator=g)
    t = draws.uniform_time(24, generator=g)
    x_t, u_t = LINEAR.interpolate(x0, X1, t)
    j = draws.keyed_generator("cpu", 1, 2, 0, "repulsion")
    from cfm_lite.paths import FlowSample

    u_neg = negatives.in_batch(FlowSample(x0, X1, t, x_t, u_t, Y), generator=j)
    assert isinstance(u_neg, torch.Tensor)
    torch.testing.assert_close(
        total, losses.contrastive_flow_matching(model(x_t, t, Y), u_t, u_neg, 0.2)
    )


@pytest.mark.parametrize(
    "negative",
    [
        negatives.in_batch,
        negatives.other_class,
        negatives.perturbed(perturbations.additive_noise, k=3),
    ],
)
@pytest.mark.parametrize("shard", [None, 8])
def test_the_two_terms_are_the_loss_in_one_function_bit_for_bit(negative, shard):
    seen = {}

    class Seen(Repulsion):
        def __call__(self, batch):
            seen["batch"] = batch
            return super().__call__(batch)

    terms = (FlowMatching(), Seen(0.15, negative))
    built = Objective(Tiny(), terms=terms, shard=shard)
    total, _ = built.at(3, 7)(X1, Y)
    batch = seen["batch"]
    u_neg, keep = batch.prepared
    loss = losses.contrastive_flow_matching(batch.v, batch.sample.u_t, u_neg, 0.15, keep)
    assert torch.equal(total, loss)
    if keep is None:
        assert torch.equal(total, losses.vecor(batch.v, batch.sample.u_t, u_neg, 0.15))
    weights = tuple(built.parameters())
    pairs = zip(*(torch.autograd.grad(one, weights, retain_graph=True) for one in (total, loss)))
    assert all(torch.equal(*pair) for pair in pairs)


def test_without_a_key_the_global_generator_decides_and_calls_differ():
    built = objective.delta_fm(Tiny(), 0.1)
    torch.manual_seed(4)
    first, second = built(X1, Y)[0], built(X1, Y)[0]
    torch.manual_seed(4)
    again = objective.delta_fm(Tiny(), 0.1)(X1, Y)[0]
    assert first != second
    assert torch.equal(first, again)


def test_a_keyed_call_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    objective.vecor(Tiny(), 0.1).plus(Contrastive(0.1, 1)).at(0, 0)(X1, Y)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["fm", "delta_fm", "vecor", "dispersive"])
def test_shards_make_a_batch_the_mean_of_its_parts(name):
    built = getattr(objective, name)(Tiny(), shard=8)
    whole, _ = built.at(0, 5)(X1, Y)
    parts = [
        built.at(0, 5, first_shard=i)(X1[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8])[0]
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_negatives_never_leave_their_shard():
    seen = []

    def spy(sample, *, generator=None):
        seen.append(sample.x1)
        return negatives.in_batch(sample, generator=generator)

    Objective(Tiny(), terms=(FlowMatching(), Repulsion(0.1, spy)), shard=8)(X1, Y)
    assert [len(x) for x in seen] == [8, 8, 8]
    assert torch.equal(torch.cat(seen), X1)


@pytest.mark.parametrize("path", [LINEAR, COSINE, VP])
def test_every_path_gives_a_finite_loss(path):
    total, values = (
        objective.delta_fm(Tiny(), 0.1, path=path).plus(Contrastive(0.2, 1)).at(0, 0)(X1, Y)
    )
    assert torch.isfinite(total)
    assert set(values) == {"flow_matching", "repulsion", "contrastive"}


def test_vp_times_stop_short_of_the_data_where_its_velocity_is_infinite():
    ones = functools.partial(lambda n, generator=None, device=None: torch.ones(n))
    total, _ = Objective(Tiny(), path=VP, time=ones)(X1, Y)
    assert torch.isfinite(total)


def test_restricted_views_differ_by_at_most_the_gap_and_stay_in_range():
    class Spy(Tiny):
        times: list

        def forward_features(self, x, t, y=None, blocks=()):
            self.times.append(t)
            return super().forward_features(x, t, y, blocks)

    model = Spy()
    model.times = []
    Objective(model, terms=(FlowMatching(), Contrastive(0.1, 1, views="restricted")))(X1, Y)
    first, second = model.times
    assert (first - second).abs().max() <= 0.005 + 1e-7
    assert (first != second).any()
    assert second.min() >= 0
    assert second.max() <= 1
    model.times = []
    Objective(model, terms=(FlowMatching(), Contrastive(0.1, 1)))(X1, Y)
    assert (model.times[0] - model.times[1]).abs().max() > 0.1


def test_dropped_labels_are_the_null_label_and_can_be_left_out_of_the_repulsion():
    seen = {}

    def spy(sample, *, generator=None):
        seen["y"] = sample.y
        return sample.u_t + 1.0

    built = Objective(
        Tiny(), terms=(FlowMatching(), Repulsion(0.1, spy, contrast_null=False)), label_dropout=0.5
    )
    total, values = built.at(0, 1)(X1, Y)
    dropped = seen["y"] == 3
    assert 0 < dropped.sum() < 24
    assert torch.equal(seen["y"][~dropped], Y[~dropped])
    everyone = Objective(Tiny(), terms=(FlowMatching(), Repulsion(0.1, spy)), label_dropout=0.5).at(
        0, 1
    )(X1, Y)[1]
    assert values["repulsion"] < everyone["repulsion"]
    assert torch.isfinite(total)


def test_all_labels_dropped_leaves_no_repulsion_and_no_nan():
    built = Objective(
        Tiny(),
        terms=(FlowMatching(), Repulsion(0.1, contrast_null=False, rescale=True)),
        label_dropout=1.0,
    )
    total, values = built(X1, Y)
    assert values["repulsion"] == 0
    assert torch.equal(total.detach(), values["flow_matching"])


def test_an_objective_made_by_plus_in_evaluation_mode_drops_no_label():
    built = objective.fm(Tiny(), label_dropout=1.0).eval()
    longer = built.plus(Repulsion(0.0))
    assert not longer.training
    assert torch.equal(longer.at(0, 0)(X1, Y)[0], built.at(0, 0)(X1, Y)[0])
    assert objective.fm(Tiny()).plus(Repulsion(0.0)).training


def test_a_single_class_batch_has_no_negatives_of_another_class():
    with pytest.warns(UserWarning, match="class"):
        _, values = objective.delta_fm(
            Tiny(), 0.1, negatives=negatives.other_class, label_dropout=0.0
        )(X1, torch.zeros(24, dtype=torch.long))
    assert values["repulsion"] == 0
    assert values["repulsion_left_out"] == 24


@pytest.mark.parametrize("name", ["delta_fm", "dispersive"])
def test_a_batch_of_one_trains_without_its_regulariser(name):
    built = getattr(objective, name)(Tiny())
    with pytest.warns(UserWarning, match="batch of one"):
        total, values = built(X1[:1], Y[:1])
    assert torch.isfinite(total)
    assert values["repulsion" if name == "delta_fm" else "dispersive"] == 0


def test_unlabelled_data_uses_the_null_label():
    assert torch.isfinite(objective.delta_fm(Tiny())(X1)[0])


def test_minibatch_coupling_reaches_the_loss():
    independent = Objective(Tiny()).at(0, 0)(X1, Y)[0]
    coupled = Objective(Tiny(), couple=draws.minibatch_ot).at(0, 0)(X1, Y)[0]
    assert coupled != independent


def test_repa_aligns_the_projected_features_and_trains_its_projector():
    class Teacher:
        dim = 5

        def __call__(self, x):
            return x.new_ones(len(x), 1, 5)

    built = objective.repa(Tiny(), Teacher(), weight=0.5, block=2)
    total, values = built(X1, Y)
    total.backward()
    assert -1 <= values["alignment"] <= 1
    assert all(p.grad is not None for p in built.modules_of_terms.parameters())
    assert built.terms["alignment"].projector[0].out_features == 2048


def test_precomputed_features_come_in_as_context():
    built = Objective(
        Tiny(), terms=(FlowMatching(), Alignment(0.5, 1, 16, lambda features: features, 4, width=8))
    )
    _, values = built(X1, Y, torch.randn(24, 1, 4))
    assert -1 <= values["alignment"] <= 1


def test_a_teacher_with_another_number_of_tokens_is_refused():
    class Tokens(Tiny):
        def forward_features(self, x, t, y=None, blocks=()):
            v, features = super().forward_features(x, t, y, blocks)
            return v, {k: h[:, None].repeat(1, 3, 1) for k, h in features.items()}

    built = Objective(
        Tokens(),
        terms=(
            FlowMatching(),
            Alignment(0.5, 1, 16, lambda x: x.new_ones(len(x), 4, 2), 2, width=8),
        ),
    )
    with pytest.raises(ConfigError, match="tokens"):
        built(X1, Y)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; it must be a whole number"),
        ({"teacher_dim": 2.5}, "teacher_dim is 2.5; it must be a whole number"),
        ({"width": 0}, "width is 0; it must be a whole number"),
        ({"teacher": None}, "teacher is None; it must be a function"),
    ],
)
def test_an_alignment_that_no_step_can_take_is_refused_when_it_is_made(change, words):
    sizes = {"hidden_size": 16, "teacher": lambda x: x[:, None], "teacher_dim": 2, "width": 8}
    with pytest.raises(ConfigError, match=words):
        Alignment(0.5, 1, **sizes | change)


def test_an_alignment_of_another_width_than_its_block_names_both():
    built = objective.fm(Tiny()).plus(Alignment(0.5, 1, 12, lambda x: x[:, None], 2, width=8))
    with pytest.raises(
        ConfigError, match="block 1 gives features of width 16, and hidden_size is 12"
    ):
        built(X1, Y)


def test_presets_compose_by_adding_terms():
    built = objective.delta_fm(Tiny(), 0.1).plus(
        Dispersive(0.5, block=1), Repulsion(0.1, negatives.other_class, name="far")
    )
    _, values = built(X1, Y)
    assert built_names(values) == ["flow_matching", "repulsion", "dispersive", "far"]


def test_a_scale_in_float64_leaves_the_data_of_float32_layers_as_they_are():
    class Scaled(Tiny):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x, t, y=None):
            return super().forward(x, t, y) * self.scale.to(x.dtype)

    assert torch.equal(
        objective.fm(Scaled()).at(0, 0)(X1, Y)[0], objective.fm(Tiny()).at(0, 0)(X1, Y)[0]
    )
    assert objective.fm(Scaled().double()).at(0, 0)(X1, Y)[0].dtype == torch.float64


def test_half_precision_data_is_promoted():
    assert objective.fm(Tiny()).at(0, 0)(X1.half(), Y)[0].dtype == torch.float32
    assert objective.fm(Tiny().double()).at(0, 0)(X1.double(), Y)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda m: objective.delta_fm(m, 1.0), "weight is 1. λK must stay below 1"),
        (lambda m: objective.vecor(m, 0.5, k=2), "weight is 0.5 with K = 2"),
        (
            lambda m: objective.delta_fm(m, 0.45).plus(Repulsion(0.55, name="again")),
            "the sum of λK over the repulsions is 1",
        ),
        (
            lambda m: objective.delta_fm(m, 0.45).plus(Repulsion(0.65, name="again")),
            r"is 1\.1\. It must stay below 1, .*Use smaller weights",
        ),
        (
            lambda m: Objective(m, terms=(Repulsion(0.05),)),
            r"Start the terms with FlowMatching\(\)",
        ),
        (lambda m: Objective(m, terms=(FlowMatching,)), r"Make one: FlowMatching\(\.\.\.\)"),
        (lambda m: objective.fm(m).plus(Dispersive(0.5, 1, name="loss")), "called 'loss'; .*step"),
        (lambda m: objective.fm(m).plus(Dispersive(0.5, 1, name=3)), "called 3; it must be a text"),
        (
            lambda m: objective.fm(m).plus(Alignment(0.5, 1, 16, abs, 2, name="a.b")),
            r"'a\.b'; torch allows no dot",
        ),
        (
            lambda m: objective.fm(m).plus(Alignment(0.5, 1, 16, abs, 2, name="keys")),
            "called 'keys'; .*no method of a ModuleDict",
        ),
        (lambda m: objective.delta_fm(m, float("nan")), "weight"),
        (lambda m: objective.delta_fm(m, -0.1), "weight"),
        (lambda m: objective.fm(m).plus(FlowMatching()), "two terms"),
        (lambda m: objective.dispersive(m, block=3), "blocks 1 to 2"),
        (lambda m: objective.fm(m, label_dropout=1.5), "label_dropout"),
        (lambda m: objective.fm(m, shard=0), "shard"),
        (lambda m: Objective(m, terms=()), "at least one term"),
        (lambda m: Contrastive(0.1, 1, views="both"), "independent"),
        (lambda m: Contrastive(0.1, 1, max_gap=-1), "max_gap"),
        (
            lambda m: Contrastive(0.1, 1, max_gap=0.1),
            "max_gap is 0.1 and the views are independent",
        ),
        (lambda m: objective.dispersive(m, tau=0.1, variant="hinge"), "tau is 0.1 and .*hinge"),
        (lambda m: Contrastive(0.1, 1, "covariance", tau=2), "tau is 2 and .*covariance"),
        (lambda m: Dispersive(0.1, 1, options={"margin": 2}), "margin is 2 and .*infonce_l2"),
        (
            lambda m: Contrastive(0.5, 1, options={"w": 3.0}),
            r"w is 3\.0 and .*infonce_l2.* has no w; leave it out, or use covariance",
        ),
        (
            lambda m: Dispersive(0.5, 1, options={"distance": "l2"}),
            "distance is 'l2' and .*or use hinge",
        ),
        (
            lambda m: Dispersive(0.5, 1, "covariance", options={"include_diagonal": False}),
            "include_diagonal is False and .*infonce_cosine or hinge",
        ),
        (lambda m: Dispersive(0.5, 1, options={"nonsense": 1}), "nonsense is 1 .* leave it out"),
        (lambda m: Dispersive(0.5, 1, options={"tau": 3.0}), "tau is no option: give tau="),
        (lambda m: Contrastive(0.5, 1, options=[1]), r"options is \[1\]; it must be a dict"),
        (
            lambda m: Contrastive(0.5, 1, "hinge", options={"distance": "l3"}),
            "distance is 'l3'; it must be one of",
        ),
        (lambda m: Dispersive(0.1, 1, "hing"), "Did you mean 'hinge'"),
    ],
)
def test_wrong_settings_are_refused_by_name(build, words):
    with pytest.raises(ConfigError, match=words):
        build(Tiny())


@pytest.mark.parametrize(
    ("x1", "y", "words"),
    [
        (X1, Y + 1, r"\[0, 2\]"),
        (X1, Y - 1, r"\[0, 2\]"),
        (X1, Y[:5], "shape"),
        (X1, Y.float(), "integers"),
        (X1.long(), Y, "dtype"),
        (X1[:, 0], Y, r"\(B, \*dims\)"),
        (X1[:0], Y[:0], "at least one row"),
        (torch.where(torch.arange(24)[:, None] == 3, torch.nan, X1), Y, r"rows \[3\]"),
    ],
)
def test_wrong_data_is_refused_with_what_was_seen(x1, y, words):
    with pytest.raises(ConfigError, match=words):
        objective.fm(Tiny())(x1, y)


def test_labels_need_a_model_that_knows_them():
    with pytest.raises(ConfigError, match="num_classes"):
        objective.fm(torch.nn.Identity())(X1, Y)


def test_negatives_that_hide_their_number_are_refused():
    def two(sample, *, generator=None):
        return torch.stack([sample.u_t, sample.u_t])

    with pytest.raises(ConfigError, match="declare k = 1"):
        Objective(Tiny(), terms=(FlowMatching(), Repulsion(0.4, two)))(X1, Y)


@pytest.mark.parametrize("keep", [torch.full((24,), 0.5), torch.ones(5), torch.ones(24, 1)])
def test_a_keep_that_is_no_flag_per_row_is_refused_as_the_loss_refuses_it(keep):
    def weighted(sample, *, generator=None):
        return sample.u_t, keep

    with pytest.raises(ConfigError, match=r"keep that negatives gave (holds|has shape)"):
        Objective(Tiny(), terms=(FlowMatching(), Repulsion(0.4, weighted)))(X1, Y)
    with pytest.raises(ConfigError, match=r"keep (holds|has shape)"):
        losses.repulsion(X1, X1, keep)


def test_wrong_velocities_are_no_wrong_conditions():
    repelled = ConditionRepulsion(0.1, negatives.in_batch)
    with pytest.raises(ConfigError, match=r"gave Tensor; .*Use negatives.other_condition"):
        objective.fm(Tiny()).plus(repelled)(X1, Y)
    with pytest.raises(ConfigError, match=r"needs .y, keep."):
        objective.fm(Tiny()).plus(ConditionRepulsion(0.1, negatives.other_class))(X1, Y)


def test_from_half_the_bound_on_a_warning_names_the_factor():
    with pytest.warns(UserWarning, match=r"λK is 0\.5: .* 1/\(1 - λK\) = 2"):
        objective.delta_fm(Tiny(), 0.5)


def test_nothing_given_is_changed():
    x1, y = X1.clone(), Y.clone()
    objective.vecor(Tiny(), 0.1).plus(Dispersive(0.5, block=1))(x1, y)
    assert torch.equal(x1, X1)
    assert torch.equal(y, Y)


def test_a_compiled_objective_agrees_with_the_eager_one():
    terms = (FlowMatching(), Repulsion(0.2), Dispersive(0.5, block=1))
    eager = gradients(Objective(Tiny(), terms=terms, shard=8))
    built = Objective(Tiny(), terms=terms, shard=8)
    total, _ = torch.compile(built.at(3, 7), backend="aot_eager")(X1, Y)
    total.backward()
    torch.testing.assert_close(total.detach(), eager[0])
    for name, p in built.model.named_parameters():
        torch.testing.assert_close(p.grad, eager[1][name], rtol=1e-4, atol=1e-6)


# a path is said once


def _halved(x, *, generator=None):
    return 0.5 * x


class _Codec:
    def decode(self, x):
        return 2 * x

    def encode(self, x):
        return x / 2


def _own_negatives(sample, *, path=LINEAR, generator=None):
    return path.interpolate(sample.x0, -sample.x1, sample.t)[1]


@pytest.mark.parametrize("path", [COSINE, VP], ids=lambda path: path.name)
@pytest.mark.parametrize(
    "negative",
    [
        lambda **given: negatives.perturbed(_halved, space="latent", **given),
        lambda **given: negatives.perturbed(_halved, space="image", k=2, codec=_Codec(), **given),
        lambda **given: functools.partial(_own_negatives, **given),
    ],
    ids=["latent", "image", "own"],
)
def test_negatives_lie_on_the_path_of_the_objective(negative, path):
    """Composed by hand or by a builder, said twice or not at all: one value."""
    told, untold = (Repulsion(0.05, negative(**given)) for given in ({"path": path}, {}))
    expected = gradients(Objective(Tiny(), path, (FlowMatching(), told)))[0]
    linear = gradients(Objective(Tiny(), LINEAR, (FlowMatching(), untold)))[0]
    assert torch.equal(gradients(Objective(Tiny(), path, (FlowMatching(), untold)))[0], expected)
    assert torch.equal(gradients(objective.fm(Tiny(), path=path).plus(untold))[0], expected)
    assert torch.equal(
        gradients(objective.delta_fm(Tiny(), negatives=untold.negatives, path=path))[0], expected
    )
    assert not torch.equal(linear, expected)


@pytest.mark.parametrize(
    "time", [draws.lognormal_time, functools.partial(draws.lognormal_time)], ids=["bare", "partial"]
)
def test_lognormal_times_follow_the_path_of_the_objective_in_both_views(time):
    seen = {}

    class Watching(Contrastive):
        def prepare(self, draw):
            x_t, t = super().prepare(draw)
            seen["first"], seen["second"] = draw.sample.t, t
            return x_t, t

    built = objective.fm(Tiny(), path=COSINE, time=time, shard=100).plus(Watching(0.5, 1))
    built.at(0, 0)(torch.zeros(20_000, 2))
    for t in (
        seen.values()
    ):  # log sigma / alpha is standard normal: by the linear law its deviation was 0.82
        z = torch.log(COSINE.sigma(t.double()) / COSINE.alpha(t.double()))
        assert z.mean().abs() < 0.03
        assert z.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"time": functools.partial(draws.lognormal_time, path=LINEAR)},
        {"time": functools.partial(functools.partial(draws.lognormal_time, path="linear"))},
        {
            "terms": (
                FlowMatching(),
                Repulsion(0.05, negatives.perturbed(_halved, space="latent", path=LINEAR)),
            )
        },
        {"terms": (FlowMatching(), Repulsion(0.05, functools.partial(_own_negatives, path=VP)))},
    ],
    ids=["time", "time by name", "negatives", "own negatives"],
)
def test_another_path_beside_the_objectives_is_refused_by_both_names(settings):
    with pytest.raises(
        ConfigError,
        match=r"path of (time|negatives) is '(linear|vp)' and the objective is on 'cosine'; leave it out",
    ):
        Objective(Tiny(), COSINE, **settings)


def test_a_sample_of_another_path_needs_its_path_named_outside_of_an_objective():
    x0, x1, t = X1.flip(0), X1, torch.linspace(0.1, 0.9, 24)
    sample = FlowSample(x0, x1, t, *COSINE.interpolate(x0, x1, t))
    with pytest.raises(ConfigError, match=r"perturbed\(\.\.\., path=COSINE\)"):
        negatives.perturbed(_halved, space="latent")(sample)
    right = COSINE.interpolate(x0, 0.5 * x1, t)[1]
    assert torch.equal(negatives.perturbed(_halved, space="latent", path=COSINE)(sample), right)
    on_linear = sample._replace(u_t=LINEAR.interpolate(x0, x1, t)[1])
    assert torch.equal(negatives.perturbed(_halved, space="latent")(on_linear), 0.5 * x1 - x0)


@pytest.mark.parametrize(
    "model",
    [lambda: MLP(8, 64, 2, 3), lambda: SiT(4, 2, 1, 32, 2, 2, num_classes=3)],
    ids=["MLP", "SiT"],
)
def test_without_a_weight_every_form_of_the_dispersive_loss_stays_near_flow_matching(model):
    """The covariance form is an undivided sum: weighted by 0.5 it was thousands beside 2."""
    network = model()
    x1 = torch.randn(
        24,
        *((1, 4, 4) if isinstance(network, SiT) else (8,)),
        generator=torch.Generator().manual_seed(0),
    )
    for variant in losses.VARIANTS:
        built = objective.dispersive(network, variant=variant)
        total, values = built.at(0, 1)(x1, Y)
        assert abs(total - values["flow_matching"]) <= 2.0, variant
        assert (total != values["flow_matching"]).item(), variant
    features = 64 if isinstance(network, MLP) else 4 * 32
    assert objective.dispersive(network, variant="covariance").terms["dispersive"].weight == 0.5 / (
        features * (features - 1)
    )
    assert (
        objective.dispersive(network, 0.5, variant="covariance").terms["dispersive"].weight == 0.5
    )  # said is said


def test_the_covariance_form_on_a_network_of_unknown_width_asks_for_its_weight():
    unknown = Tiny()
    del unknown.hidden_size
    assert objective.dispersive(unknown).terms["dispersive"].weight == 0.5
    with pytest.raises(ConfigError, match=r"Use weight = 0\.5 / \(d \* \(d - 1\)\)"):
        objective.dispersive(unknown, variant="covariance")
    expected = objective.dispersive(unknown, 0.5 / (16 * 15), variant="covariance").at(0, 1)(X1, Y)[
        0
    ]
    assert torch.equal(
        objective.dispersive(Tiny(), variant="covariance").at(0, 1)(X1, Y)[0], expected
    )


@pytest.mark.parametrize("kind", [Contrastive, Dispersive])
@pytest.mark.parametrize("wrong", [torch.arange(3), np.arange(3), None, "a", float("nan"), 0.0])
def test_a_temperature_or_margin_that_is_no_positive_number_is_refused_at_once(kind, wrong):
    for given in ({"tau": wrong}, {"variant": "hinge", "options": {"margin": wrong}}):
        with pytest.raises(ConfigError, match=r"tau|margin"):
            kind(0.5, 1, **given)
