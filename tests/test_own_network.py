"""One's own network: what it must take and give is checked where an objective is made, and the
message says what is missing.
"""

import copy
import types
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from cfm_lite import draws, guidance, metrics, objective, perturbations, samplers
from cfm_lite._internal.networks import seeded
from cfm_lite.data import captions, toy
from cfm_lite.data import words as pictures
from cfm_lite.data.batches import batches
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.evaluate import measures, reader
from cfm_lite.lab.arms import balanced_labels
from cfm_lite.models import classifier
from cfm_lite.negatives import perturbed
from cfm_lite.objective import (
    Alignment,
    Contrastive,
    Dispersive,
    FlowMatching,
    Objective,
    Repulsion,
)
from cfm_lite.runs.sampling import noise_of
from cfm_lite.training import Trainer
from tests.networks import Tiny, same_parameters

X1 = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(24) % 3
TS = torch.linspace(0, 1, 3)
WORDS = torch.ones(24, 4, dtype=torch.int64)


class Net(nn.Module):
    """Calls `function(self, x, t, y)` in its forward pass; its one layer has something to train."""

    def __init__(self, function=None, **facts):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.function = function or (lambda net, x, t, y: net.layer(x))
        vars(self).update(facts)

    def forward(self, x, t, y=None):
        return self.function(self, x, t, y)


class Featured(Net):
    """Gives `give(h)` as its features, where h is (B, 2)."""

    def __init__(self, give, **facts):
        super().__init__(**facts)
        self.give = give

    def forward_features(self, x, t, y=None, blocks=()):
        return self.layer(x), self.give(self.layer(x))


def of(forward):
    """A network whose forward pass is this function."""
    return type("Own", (Net,), {"forward": forward})()


def test_a_network_without_conditions_trains_and_samples_as_model_of_x_and_t():
    model = of(lambda self, x, t: self.layer(x))
    log = list(Trainer(objective.fm(model)).run(batches(X1, size=8), 2))
    assert torch.isfinite(log[-1]["loss"])
    assert samplers.sample(model, X1, TS).shape == X1.shape
    model.num_classes = 3
    with pytest.raises(ConfigError, match=r"takes only \(x, t\); add a third argument y"):
        objective.fm(model)(X1, Y)
    with pytest.raises(ConfigError, match=r"takes only \(x, t\)"):
        samplers.sample(guidance.conditional(model, 1), X1, TS)


@pytest.mark.parametrize(
    "wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel]
)
def test_what_torch_puts_around_a_network_changes_nothing_of_what_it_takes(wrap):
    model = of(lambda self, x, t: self.layer(x))
    assert torch.isfinite(objective.fm(wrap(model))(X1)[0])
    assert samplers.sample(wrap(model), X1, TS).shape == X1.shape
    with pytest.raises(ConfigError, match="takes 't' first"):
        objective.fm(wrap(of(lambda self, t, x, y=None: x)))
    labelled = Tiny(num_classes=3)
    expected, found = (objective.fm(m).at(0, 1)(X1, Y)[0] for m in (labelled, wrap(labelled)))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigError, match=r"labels span \[0, 3\]"):
        objective.fm(wrap(labelled))(X1, Y + (Y == 2))
    table = Net(num_classes=3)
    table.table = nn.Embedding(3, 2)
    with pytest.raises(ConfigError, match="has no null label"):
        objective.fm(wrap(table))


class Script(nn.Module):
    """Simple enough for TorchScript."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, y: torch.Tensor | None = None):
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_scripted_network_and_one_with_a_traced_part_train_sample_and_resume(inside, tmp_path):
    def trainer():
        if not inside:
            return Trainer(objective.fm(torch.jit.script(Script())))
        model = of(lambda self, x, t, y=None: self.part(x))
        model.part = torch.jit.trace(nn.Linear(2, 2), X1)
        return Trainer(objective.fm(model))

    first = trainer()
    list(first.run([X1] * 3, 3))
    second = trainer().resume(first.save(tmp_path))
    for run in (first, second):
        list(run.run([X1] * 2, 2))
    assert same_parameters(first.ema, second.ema)
    assert not same_parameters(first.ema, first.objective.model)
    assert not any(p.requires_grad for p in first.ema.parameters())
    assert samplers.sample(first.ema, X1, TS).shape == X1.shape


@pytest.mark.parametrize(
    ("dtype", "data", "words"),
    [
        (torch.float32, torch.float64, r"give data \.to\(torch\.float32\)"),
        (torch.bfloat16, torch.float32, r"call \.float\(\) on the model"),
        (torch.float16, torch.float16, r"call \.float\(\) on the model"),
    ],
)
def test_data_in_another_precision_than_the_weights_are_one_line(dtype, data, words):
    model, x1 = Net().to(dtype), X1.to(data)
    uses = [
        lambda x1: objective.fm(model)(x1),
        lambda x1: list(Trainer(objective.fm(model)).run([x1], 1)),
        lambda x1: samplers.sample(model, x1, TS),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match=rf"^x has dtype .* the weights {dtype}: {words}"):
            use(x1)
    model.float()
    for use in uses:  # what the line says helps
        use(x1.float())


def test_eight_bit_floats_are_promoted_as_all_short_ones_are():
    short = X1.to(torch.float8_e4m3fn)
    wide = short.float()
    assert torch.equal(
        *(objective.fm(Tiny()).at(0, 1)(x1, Y)[0] for x1 in (short, wide)),
    )
    logs = [next(iter(Trainer(objective.fm(Tiny())).run([(x1, Y)], 1))) for x1 in (short, wide)]
    assert torch.equal(*(log["loss"] for log in logs))
    short = X1.to(torch.float8_e5m2)
    assert torch.equal(*(samplers.sample(Tiny(), x, TS) for x in (short, short.float())))
    short[3, 1] = float("nan")
    with pytest.raises(ConfigError, match=r"NaN or infinity in rows \[3\]"):
        objective.fm(Tiny())(short, Y)
    with pytest.raises(ConfigError, match="not finite"):
        samplers.sample(Tiny(), short, TS)


def test_a_network_that_must_be_given_labels_is_given_none_where_there_are_none():
    model = of(lambda self, x, t, y: self.layer(x) + (0 if y is None else y[:, None]))
    assert torch.isfinite(objective.fm(model)(X1)[0])
    assert samplers.sample(model, X1, TS).shape == X1.shape


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda self, x: x, r"cannot be called as model\(x, t, y\)"),
        (lambda self, x, t, y, mask: x, r"cannot be called as model\(x, t, y\)"),
        (lambda self, x, t, *, y: x, r"cannot be called as model\(x, t, y\)"),
        (lambda self, t, x, y=None: x, "takes 't' first"),
        (lambda self, timesteps, sample: sample, "takes 'timesteps' first"),
    ],
)
def test_a_forward_pass_of_another_form_is_refused_before_it_runs(forward, words):
    with pytest.raises(ConfigError, match=words):
        objective.fm(of(forward))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda v: types.SimpleNamespace(sample=v), r"Return output\.sample"),
        (lambda v: types.SimpleNamespace(logits=v), r"Return output\.logits"),
        (lambda v: (v, v), "a tuple of 2.*only its first entry"),
        (lambda v: [v], "a list of 1.*only its first entry"),
        (lambda v: {"v": v, "h": v}, r"a dict.*the names are \['v', 'h'\]"),
        (lambda v: None, "returned None"),
        (lambda v: v.detach().numpy(), "a ndarray"),
        (lambda v: torch.cat([v, v], 1), "twice the channels: return the first half"),
        (lambda v: v[:, :1], r"shape \(24, 1\) for x \(24, 2\)"),
        (lambda v: v.mean(), r"shape \(\)"),
        (lambda v: v + 0j, "complex64"),
        (lambda v: v.long(), "int64"),
    ],
)
def test_what_is_no_velocity_is_refused_with_what_to_return(output, words):
    model = Net(lambda net, x, t, y: output(net.layer(x)))
    with pytest.raises(ConfigError, match=words):
        objective.fm(model)(X1)
    with pytest.raises(ConfigError, match=words):
        samplers.sample(model, X1, TS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_velocity_in_another_precision_is_promoted(dtype):
    model = Net(lambda net, x, t, y: net.layer(x).to(dtype))
    total, _ = objective.delta_fm(model, 0.1)(X1)
    total.backward()
    assert total.dtype in (torch.float32, torch.float64)
    assert model.layer.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda h: [h, h], "as a list of 2; it must be a mapping"),
        (lambda h: h, "as a tensor"),
        (lambda h: None, "as None"),
        (lambda h: {0: h, 1: h}, "the first block is 1"),
        (lambda h: {2: h}, r"asked for the blocks \[1\] and returned \[2\]"),
        (lambda h: {"block1": h}, r"returned \['block1'\]"),
        (lambda h: {}, r"returned \[\]"),
        (lambda h: {1: [h]}, "features of block 1 has type list"),
        (lambda h: {1: h[:5]}, r"features of block 1 have shape \(5, 2\)"),
        (lambda h: {1: h[:, 0]}, r"features of block 1 have shape \(24,\)"),
        (lambda h: {1: h.long()}, "int64"),
    ],
)
def test_features_in_another_container_are_refused(give, words):
    for term in (Dispersive(0.5, 1), Contrastive(0.5, 1)):
        with pytest.raises(ConfigError, match=words):
            objective.fm(Featured(give)).plus(term)(X1)


@pytest.mark.parametrize(
    "output", [lambda v: v, lambda v: (v,), lambda v: (v, {1: v}, 0), lambda v: {1: v}]
)
def test_forward_features_must_return_a_pair(output):
    class Own(Net):
        def forward_features(self, x, t, y=None, blocks=()):
            return output(self.layer(x))

    with pytest.raises(ConfigError, match=r"must return \(velocity"):
        objective.dispersive(Own())(X1)


def test_a_map_of_features_is_the_tokens_of_its_pixels():
    class Teacher:
        dim = 3

        def __call__(self, x):
            return torch.arange(len(x) * 4 * 3.0).reshape(len(x), 4, 3)

    def build(give):
        torch.manual_seed(1)
        return (
            objective.fm(Featured(give))
            .plus(Alignment(0.5, 1, 2, Teacher(), 3, width=8), Dispersive(0.5, 1))
            .at(0, 0)(X1)[0]
        )

    torch.manual_seed(2)
    weight = torch.randn(1, 2, 2, 2)
    tokens, maps = (
        build(lambda h: {1: (h[:, :, None, None] * weight).flatten(2).mT}),
        build(lambda h: {1: h[:, :, None, None] * weight}),
    )
    torch.testing.assert_close(tokens, maps)


def test_a_term_that_reads_features_needs_a_network_that_gives_them():
    for build in (
        objective.dispersive,
        lambda model: objective.fm(model).plus(Contrastive(0.1, 1)),
    ):
        with pytest.raises(
            ConfigError, match=r"reads block 1, and Net has no forward_features\(x, t, y, blocks\)"
        ):
            build(Net())
    without_blocks = type("Own", (Net,), {"forward_features": lambda self, x, t, y=None: x})()
    with pytest.raises(ConfigError, match=r"must take \(x, t, y, blocks\)"):
        objective.dispersive(without_blocks)


def test_repa_names_the_size_that_is_missing():
    class Teacher:
        def __call__(self, x):
            return x

    with pytest.raises(ConfigError, match=r"Net.hidden_size is None"):
        objective.repa(Net(), Teacher())
    with pytest.raises(ConfigError, match=r"Teacher.dim is None"):
        objective.repa(Tiny(), Teacher(), block=1)


def embedding(rows, **facts):
    model = Net(lambda net, x, t, y: net.layer(x) + net.table(y), num_classes=3, **facts)
    model.table = nn.Embedding(rows, 2)
    return model


def test_a_label_table_without_a_null_row_is_found_when_the_objective_is_made():
    with pytest.raises(ConfigError, match="no null label: give its label table 4 rows"):
        objective.fm(embedding(3))
    assert torch.isfinite(objective.fm(embedding(3), label_dropout=0)(X1, Y)[0])
    assert torch.isfinite(objective.fm(embedding(4), label_dropout=0.5)(X1, Y)[0])


def test_a_null_label_that_fails_only_when_it_is_seen_is_explained():
    two = embedding(3)
    two.other = nn.Embedding(7, 2)  # with two tables nobody can say which is that of the labels
    hot = Net(lambda net, x, t, y: net.layer(x) + nn.functional.one_hot(y, 3)[:, :2], num_classes=3)
    for model in (two, hot):
        with pytest.raises(
            ConfigError,
            match="on the null label 3, which dropped rows get: give its label table 4 rows",
        ):
            objective.fm(model, label_dropout=1.0)(X1, Y)


@pytest.mark.parametrize(
    "null",
    [3, torch.tensor(3), lambda y: 3, lambda y: None, lambda y: y[:1], lambda y: y.float()],
)
def test_a_null_condition_of_another_form_is_refused_with_what_it_must_give(null):
    model = Net(num_classes=3, null_condition=null)
    captions = Net(condition="captions", null_condition=null)
    with pytest.raises(ConfigError, match=r"null_condition gives .* of the shape \(24,\)"):
        objective.fm(model)(X1, Y)
    with pytest.raises(ConfigError, match=r"null_condition gives .* of the shape \(24, 4\)"):
        samplers.sample(guidance.cfg(captions, y=WORDS, scale=2.0), X1, TS)


@pytest.mark.parametrize("facts", [{}, {"null_condition": None}])
def test_captions_without_a_null_condition_are_refused_where_they_would_be_dropped(facts):
    model = Net(condition="captions", **facts)
    missing = r'has condition = "captions" and no null_condition\(y\)'
    with pytest.raises(ConfigError, match=f"{missing}.*or set label_dropout=0"):
        objective.fm(model)
    with pytest.raises(ConfigError, match=f"{missing}.*scale of 1.*docs/own_network.md"):
        guidance.cfg(model, WORDS, 2.0)
    # what the messages say to do
    assert torch.isfinite(objective.fm(model, label_dropout=0)(X1, WORDS)[0])
    for velocity in (
        guidance.cfg(model, WORDS, 1.0),
        guidance.cfg(model, WORDS, 2.0, negative=WORDS),
    ):
        assert samplers.sample(velocity, X1, TS).shape == X1.shape
    model.null_condition = torch.zeros_like
    assert torch.isfinite(objective.fm(model)(X1, WORDS)[0])
    assert samplers.sample(guidance.cfg(model, WORDS, 2.0), X1, TS).shape == X1.shape


@pytest.mark.parametrize("y", [WORDS, torch.ones(24, 4, 5)])
def test_captions_for_a_network_that_does_not_say_so_are_told_what_to_set(y):
    with pytest.raises(ConfigError, match='for captions set condition = "captions"') as told:
        objective.fm(Net())(X1, y)
    assert str(tuple(y.shape)) in str(told.value)
    model = Net(condition="captions", null_condition=torch.zeros_like)
    assert torch.isfinite(objective.fm(model)(X1, y)[0])


def test_captions_for_a_network_of_x_and_t_are_not_dropped_silently():
    model = of(lambda self, x, t: self.layer(x))
    model.condition, model.null_condition = "captions", torch.zeros_like
    with pytest.raises(ConfigError, match=r"takes only \(x, t\); add a third argument y"):
        objective.fm(model)(X1, WORDS)


def test_another_error_inside_a_network_stays_what_it_is():
    with pytest.raises(IndexError, match="mine"):
        objective.fm(Net(lambda net, x, t, y: (_ for _ in ()).throw(IndexError("mine"))))(X1)
    # not for want of labels: another error of a network with classes that takes none
    wrong = Net(lambda net, x, t, y: net.layer(x[:, :1]), num_classes=3, has_null=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        objective.fm(wrong)(X1)


@pytest.mark.parametrize("classes", [2.5, "3", True, -1, [3]])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(ConfigError, match="num_classes is"):
        objective.fm(Net(num_classes=classes))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"time": lambda n: torch.rand(n)},
            r"time takes \(n\); it is called as time\(n, \*, generator, device\)",
        ),
        ({"time": lambda n, generator: torch.rand(n)}, "time takes"),
        ({"couple": lambda x0, x1: (x0, x1)}, r"couple takes \(x0, x1\)"),
        ({"time": 3}, "time is 3"),
    ],
)
def test_a_function_that_takes_no_generator_is_refused_with_the_form_that_it_needs(settings, words):
    with pytest.raises(ConfigError, match=words):
        Objective(Net(), **settings)


def test_negatives_that_take_no_generator_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"negatives takes \(sample\); it is called as negatives\(sample, \*, generator=None\)",
    ):
        Repulsion(0.1, lambda sample: sample.u_t)


def test_a_perturbation_that_takes_no_generator_is_refused():
    for build in (
        lambda f: objective.vecor(Net(), 0.1, perturb=f),
        lambda f: perturbations.expected_map(f, (2,)),
    ):
        with pytest.raises(
            ConfigError, match=r"takes \(x\); it is called as \w+\(x, \*, generator=None\)"
        ):
            build(lambda x: -x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time": lambda n, *, generator, device: torch.rand(n + 1)}, "time gave a tensor"),
        ({"time": lambda n, *, generator, device: 0.5}, "time gave float"),
        (
            {"time": lambda n, *, generator, device: torch.zeros(n, dtype=torch.long)},
            "time gave a tensor",
        ),
        (
            {"time": lambda n, *, generator, device: torch.rand(n) * 2},
            r"what time gave spans \[.*\]; times lie in \[0, 1\]",
        ),
        ({"couple": lambda x0, x1, y: (x0, x1)}, "couple gave tuple"),
        ({"couple": lambda x0, x1, y: x0}, "couple gave Tensor"),
        ({"couple": lambda x0, x1, y: (x0[:3], x1[:3], y)}, "shapes differ"),
        ({"couple": lambda x0, x1, y: (x0, x1, [0] * 24)}, "couple gave y of type list"),
        (
            {"terms": (FlowMatching(), Repulsion(0.1, lambda s, *, generator: [s.u_t]))},
            "negatives gave list",
        ),
        (
            {"terms": (FlowMatching(), Repulsion(0.1, lambda s, *, generator: s.u_t[:3]))},
            "negatives",
        ),
    ],
)
def test_what_a_function_of_ones_own_gives_is_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        Objective(Net(), **settings)(X1)


def test_a_coupling_that_draws_is_given_a_generator_of_the_step_and_moves_no_other_draw():
    seen = []

    def couple(x0, x1, y, *, generator):
        seen.append(float(torch.rand((), generator=generator)))
        return x0, x1, y

    plain, drawn = Objective(Tiny()), Objective(Tiny(), couple=couple)
    assert torch.equal(plain.at(0, 1)(X1, Y)[0], drawn.at(0, 1)(X1, Y)[0])
    drawn.at(0, 1)(X1, Y)
    drawn.at(0, 2)(X1, Y)
    assert seen[0] == seen[1] != seen[2]


def test_after_eval_no_label_is_dropped_and_a_run_goes_back_to_training():
    seen = []
    model = Tiny()
    model.register_forward_pre_hook(
        lambda module, args: seen.append((args[2] == 3).float().mean().item())
    )
    built = objective.fm(model, label_dropout=0.5)
    built.eval().at(0, 0)(X1, Y)
    built.train().at(0, 0)(X1, Y)
    assert seen[0] == 0 < seen[1]
    keep = Objective(
        model, terms=(FlowMatching(), Repulsion(0.1, contrast_null=False)), label_dropout=0.5
    ).eval()
    everyone = Objective(model, terms=(FlowMatching(), Repulsion(0.1)), label_dropout=0.0)
    torch.testing.assert_close(keep.at(0, 0)(X1, Y)[0], everyone.at(0, 0)(X1, Y)[0])


@pytest.mark.parametrize("term", [Dispersive(0.5, 1), Alignment(0.5, 1, 2, lambda x: x, 2)])
def test_features_without_a_gradient_are_refused_where_a_term_would_train_by_them(term):
    cut = Featured(lambda h: {1: h.detach()}, hidden_size=2)
    with pytest.raises(ConfigError, match="features of block 1 that carry no gradient"):
        objective.fm(cut).plus(term)(X1)
    with torch.no_grad():  # a look at held-out data asks for no gradient
        assert len(objective.fm(cut).plus(term)(X1)[1]) == 2
    assert len(objective.fm(cut).plus(Dispersive(0.0, 1))(X1)[1]) == 2


def _doubled(x, *_, generator=None):
    return x.mul_(2)


def _doubled_target(sample, *, generator=None):
    return sample.u_t.mul_(2)


def _doubled_data(x0, x1, y):
    return x0, x1.mul_(2), y


def _teacher(x):
    return x.mul_(2)[:, None]


WRITERS = {
    "what the term 'repulsion' calls": lambda: objective.delta_fm(
        Tiny(), negatives=_doubled_target
    ),
    "what the term 'perturbed' calls": lambda: objective.fm(Tiny()).plus(
        Repulsion(0.1, perturbed(_doubled, space="latent"), name="perturbed")
    ),
    "couple": lambda: objective.fm(Tiny(), couple=_doubled_data),
    "what the term 'alignment' calls": lambda: objective.fm(Tiny()).plus(
        Alignment(0.5, 1, 16, _teacher, 2)
    ),
    "the model": lambda: objective.fm(
        Net(lambda net, x, t, y: net.layer(x.mul_(2)), num_classes=3)
    ),
}


@pytest.mark.parametrize("who", WRITERS)
def test_a_function_of_the_caller_that_writes_into_what_it_is_given_is_refused(who):
    with pytest.raises(ConfigError, match=f"{who} wrote into what it was given"):
        WRITERS[who]()(X1.clone(), Y)


@pytest.mark.parametrize("leave", [lambda built: built.eval(), lambda built: built.model.eval()])
def test_a_look_at_held_out_data_between_two_steps_changes_nothing_of_the_run(leave):
    def run(look):
        torch.manual_seed(3)
        model = Net(
            lambda net, x, t, y: net.layer(nn.functional.dropout(x, 0.5, net.training)),
            num_classes=3,
        )
        trainer = Trainer(objective.fm(model, label_dropout=0.5))
        torch.manual_seed(4)
        for _ in trainer.run(batches(X1, Y, size=8), 4):
            if look:
                leave(trainer.objective)
        return trainer.objective

    assert same_parameters(run(False), run(True))


def test_a_teacher_of_ones_own_is_asked_in_eval_mode():
    teacher = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Unflatten(1, (1, 4)))
    built = objective.fm(Tiny()).plus(Alignment(0.5, 1, 16, teacher, 4, width=8))
    built(X1, Y)
    assert teacher.training
    assert teacher[1].num_batches_tracked == 0


def test_batches_by_name_are_batches():
    def run(source):
        trainer = Trainer(objective.fm(Tiny()))
        list(trainer.run(source, 2))
        return trainer.objective

    plain = run([(X1, Y)] * 2)
    assert same_parameters(plain, run([{"x1": X1, "y": Y}] * 2))
    assert same_parameters(plain, run([{"y": Y, "x1": X1, "context": None}] * 2))
    assert same_parameters(run([X1] * 2), run([{"x1": X1}] * 2))


@pytest.mark.parametrize(
    "batch",
    [
        {"image": X1, "label": Y},
        {"x1": X1, "labels": Y},
        None,
        "x1",
        3,
        (X1, Y, X1, Y),
        (),
        X1.numpy(),
        types.SimpleNamespace(x1=X1),
        [Y[0]],
    ],
)
def test_batches_of_another_kind_are_refused_with_what_is_expected(batch):
    with pytest.raises(DataError, match=r"a batch has type .* it must be a tensor x1, \(x1, y\)"):
        list(Trainer(objective.fm(Tiny())).run([batch], 1))


@pytest.mark.parametrize(
    "names", [("image", "label"), ("pixel_values", "labels"), ("img",), ("x1", "idx")]
)
def test_what_a_dict_of_other_names_is_told_works_as_it_stands(names):
    """Datasets of Hugging Face call their columns as they like, in any order."""
    batch = dict(zip(reversed(names), (Y, X1) if len(names) == 2 else (X1,)))
    with pytest.raises(DataError) as error:
        next(Trainer(objective.fm(Tiny())).run([batch], 1))
    advice = str(error.value).partition("such as ")[2].removesuffix(".")
    batches = [batch]  # noqa: F841  what the advice calls them
    told = next(eval(advice))  # noqa: S307
    assert torch.equal(told["x1"], X1)
    assert torch.isfinite(next(Trainer(objective.fm(Tiny())).run([told], 1))["loss"])


def test_a_batch_without_rows_is_refused():
    empty = (torch.zeros(0, 2), torch.zeros(0).long())
    for batch in (empty, empty[0], {"x1": empty[0], "y": empty[1]}):
        for how in ({}, {"accumulate": 2}):
            with pytest.raises(DataError, match=r"no rows: x1 has shape \(0, 2\).*Leave such"):
                list(Trainer(objective.fm(Tiny()), **how).run([batch], 1))


@pytest.mark.parametrize("batch", [(X1.numpy(), Y), {"x1": X1.numpy(), "y": Y}, [X1.numpy()]])
def test_a_batch_of_arrays_is_told_what_they_are(batch):
    with pytest.raises(DataError, match=r"\(ndarray.*such as torch\.as_tensor\(x1\)"):
        list(Trainer(objective.fm(Tiny())).run([batch], 1))


def test_an_optimizer_has_a_rate_of_its_own():
    built = objective.fm(Tiny())
    with pytest.raises(ConfigError, match=r"lr = 0\.01 is given beside an optimizer"):
        Trainer(built, torch.optim.SGD(built.parameters(), lr=0.1), lr=0.01)
    assert Trainer(built).optimizer.param_groups[0]["lr"] == 1e-3


def test_an_optimizer_holds_the_parameters_of_the_objective_all_of_them():
    model = Tiny()
    built = objective.fm(model).plus(Alignment(0.5, 1, 16, lambda x: x[:, None], 2, width=8))
    with pytest.raises(ConfigError, match=r"does not hold .*projector"):
        Trainer(built, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="does not have"):
        Trainer(
            objective.fm(model),
            torch.optim.SGD([*model.parameters(), *Tiny().parameters()], lr=0.1),
        )
    for kind in (torch.optim.LBFGS, torch.optim.SparseAdam):
        with pytest.raises(ConfigError, match=f"the optimizer is {kind.__name__}"):
            Trainer(objective.fm(model), kind(model.parameters()))
    derived = torch.optim.SGD(model.parameters(), lr=0.1, differentiable=True)
    with pytest.raises(ConfigError, match="differentiable=True"):
        Trainer(objective.fm(model), derived)
    with pytest.raises(ConfigError, match=r"optimizer has type"):
        Trainer(objective.fm(model), torch.optim.SGD)


def test_a_run_that_nobody_iterates_warns():
    trainer = Trainer(objective.fm(Tiny()))
    with pytest.warns(UserWarning, match="never iterated, so nothing was trained"):
        trainer.run(batches(X1, Y, size=8), 5)
    run = trainer.run(batches(X1, Y, size=8), 5)
    next(run)
    del run  # a run that was begun may end early
    assert trainer.step == 1


def test_wrong_arguments_of_a_run_are_refused_when_it_is_called():
    for arguments, words in (((3, 5), "batches has type int"), (([X1], 0), "steps is 0")):
        with pytest.raises(ConfigError, match=words):
            Trainer(objective.fm(Tiny())).run(*arguments)


def test_a_time_law_of_torch_itself_is_a_time_law():
    assert torch.isfinite(Objective(Net(), time=torch.rand)(X1)[0])
    assert torch.isfinite(Objective(Net(), time=draws.logit_normal_time)(X1)[0])


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor])
def test_any_whole_number_counts_the_classes(kind):
    """`y.max() + 1` is a number of NumPy or of torch."""
    wanted, found = Tiny(num_classes=2), Tiny(num_classes=2)
    found.num_classes = kind(2)
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    for velocity in (lambda m: guidance.cfg(m, 1, 2.0), lambda m: guidance.conditional(m, 1)):
        torch.testing.assert_close(velocity(found)(x, t), velocity(wanted)(x, t))


class Labelled(nn.Module):
    """It must be given labels."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, x, t, y=None):
        return x + self.table(y)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: objective.fm(m)(x),
        lambda m, x: next(iter(Trainer(objective.fm(m)).run(batches(x, size=4), steps=1))),
        lambda m, x: samplers.sample(m, x, torch.linspace(0, 1, 3)),
        lambda m, x: guidance.conditional(m, None)(x, torch.zeros(len(x))),
    ],
)
def test_a_network_with_labels_that_gets_none_is_told_which(use):
    with pytest.raises(ConfigError, match=r"Labelled failed .* without labels.* in \[0, 1\]"):
        use(Labelled(), torch.randn(8, 2))


@pytest.mark.parametrize("step", [samplers.euler, samplers.heun, samplers.rk4, None])
@pytest.mark.parametrize("part", ["x", "t"])
def test_a_velocity_that_writes_into_what_it_is_given_is_refused(step, part):
    def velocity(x, t):
        (x if part == "x" else t).mul_(1.5)
        return x * t[:, None]

    x, ts = torch.ones(3, 2), torch.linspace(0.1, 0.9, 5)
    solve = partial(samplers.sample, step=step)
    if step is None:
        solve = partial(samplers.sample_sde, last_step=None)
    with pytest.raises(ConfigError, match=r"x \* 2 in place of x \*= 2"):
        solve(velocity, x, ts)
    if step:
        with pytest.raises(ConfigError, match=r"x \* 2 in place of x \*= 2"):
            step(velocity, x, torch.full((3,), 0.1), 0.2)
        with pytest.raises(ConfigError, match=r"x \* 2 in place of x \*= 2"):
            solve(velocity, x, ts, step=lambda v, x, t, dt: x + dt * v(x, t))  # one of one's own
    elif part == "x":
        for last_step in ("mean", "euler", "tweedie"):
            late = lambda x, t: x if t[0] < 0.96 else x.mul_(2)  # noqa: E731
            with pytest.raises(ConfigError, match=r"x \* 2 in place of x \*= 2"):
                samplers.sample_sde(late, x, torch.linspace(0, 0.96, 5), last_step=last_step)
        with pytest.raises(ConfigError, match=r"x \* 2 in place of x \*= 2"):
            samplers.sample_adaptive(velocity, x)
    with torch.inference_mode():  # torch counts nothing there, and allows it
        assert samplers.sample(lambda x, t: x, torch.ones(3, 2), ts).isfinite().all()


def test_a_transform_of_torch_func_goes_through_the_transport_of_a_batch():
    built, x = objective.fm(Tiny(), couple=draws.minibatch_ot), torch.randn(8, 2)

    def loss(parameters):
        torch.manual_seed(0)
        return functional_call(built, parameters, (x,))[0]

    slopes = grad(loss)({name: value.detach() for name, value in built.named_parameters()})
    loss(dict(built.named_parameters())).backward()
    for name, value in built.named_parameters():
        torch.testing.assert_close(slopes[name], value.grad)


def twelve_lines(model):
    """What README's first program does, in few steps, and other draws."""
    x, y = toy.two_classes(50, generator=torch.Generator("cpu").manual_seed(0))
    trainer = Trainer(objective.delta_fm(model, shard=8), lr=1e-2, seed=0)
    for _ in trainer.run(batches(x, y, size=8), steps=3):
        pass
    noise, ts = noise_of((2,), 4, 0), torch.linspace(0, 1, 5, device="cpu")
    classes = draws.class_labels("turn", 2, 4)
    return [
        samplers.sample(guidance.cfg(model, classes, 2.0), noise, ts),
        samplers.sample_adaptive(guidance.conditional(model, 1), noise),
        toy.figure3(5, generator=torch.Generator("cpu").manual_seed(0))[0],
        toy.mixture("gaussians").means,
        perturbations.expected_map(perturbations.channel_shuffle, (3, 2, 2)),
        captions.encode(["a red seven"]),
        classifier._shifted(X1.reshape(3, 1, 4, 4), 1, torch.Generator("cpu").manual_seed(0)),
        metrics.frechet(X1, 2 * X1),
        reader.find(pictures.load("train", 4, seed=0).x1).centre,
        measures._some(X1, 5),
        balanced_labels(3, 7),
    ]


def test_another_default_device_changes_nothing_of_ours():
    """`meta` stands for a GPU here: whatever is made there by mistake is found."""
    model = Tiny(num_classes=2)
    wanted = twelve_lines(copy.deepcopy(model))
    torch.set_default_device("meta")
    try:
        found = twelve_lines(model)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_weights_from_a_seed_leave_the_generators_of_every_device_alone(monkeypatch):
    """torch.manual_seed would give all ranks the masks of one dropout, and repeat them."""
    reset = []
    for kind in (torch.cuda, torch.xpu):
        monkeypatch.setattr(kind, "manual_seed_all", reset.append)
    before = torch.get_rng_state()
    with seeded(7):
        weight = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert reset == []
    assert torch.equal(weight, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_weights_from_a_seed_are_so_on_the_default_device_too(monkeypatch):
    kept, place = torch.zeros(1, dtype=torch.uint8), torch.device("cuda", 1)
    calls = []
    monkeypatch.setattr(torch, "get_default_device", lambda: place)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: kept)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, at: calls.append((state, at)))
    monkeypatch.setattr(torch.cuda, "manual_seed", calls.append)
    with seeded(7):
        assert calls == [7]
    assert calls == [7, (kept, place)]
