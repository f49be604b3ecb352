"""In 16 bits a network still tells one time from the next: its time vector errs by less than one
step in 250 changes it.
"""

import copy

import pytest
import torch

from cfm_lite.models import MLP, MMDiT, SiT, UNet

T = torch.arange(250) / 250


def trained_like(model):
    """Weights as large as after training: the first ones of a SiT's time are 50 times smaller than
    its inputs.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=p.shape[1] ** -0.5)
    return model


def time_part(model):
    if not isinstance(model, MLP):
        return model.t_embedder
    x = torch.zeros(len(T), 2)
    return lambda t: model._first(x.to(next(model.parameters()).dtype), t, None)


MODELS = {
    "sit": SiT(
        input_size=4,
        patch_size=2,
        in_channels=1,
        hidden_size=64,
        depth=1,
        num_heads=2,
        num_classes=3,
    ),
    "unet": UNet(8, 1, [64], 1),
    "mmdit": MMDiT(4, 2, 1, 64, 1, 2, context_dim=8, context_length=5, vocab_size=9),
    "mlp": MLP(2, 64, 2),
}
SHAPES = {"mlp": (2,), "unet": (1, 8, 8)}


@pytest.mark.parametrize("name", MODELS)
def test_under_autocast_the_time_errs_by_less_than_a_twentieth_of_a_step(name):
    model = trained_like(copy.deepcopy(MODELS[name]))
    with torch.no_grad():
        exact = time_part(model)(T)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = time_part(model)(T)
    step = (exact[1:] - exact[:-1]).norm(dim=1)
    error = (rounded.double() - exact).norm(dim=1)[1:]
    assert (error < 0.05 * step).all()


@pytest.mark.parametrize("name", ["sit", "unet", "mmdit"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_add_no_error_of_their_own_to_a_times_place(name, dtype):
    model = trained_like(copy.deepcopy(MODELS[name])).to(dtype)
    wide = copy.deepcopy(model).float()  # the same rounded weights
    with torch.no_grad():
        exact = wide.t_embedder(T)
        error = (model.t_embedder(T) - exact).norm(dim=1)[1:]
    assert (error < 0.05 * (exact[1:] - exact[:-1]).norm(dim=1)).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_still_gives_its_own_type(name, dtype):
    model = copy.deepcopy(MODELS[name]).to(dtype)
    x = torch.zeros(3, *SHAPES.get(name, (1, 4, 4)), dtype=dtype)
    assert model(x, T[:3]).dtype == dtype
