"""What VeCoR pushes away from: a real digit, a perturbation of it or of its velocity, and how far
the wrong velocity is from the right one.

right: u = x1 - x0      wrong, velocity space: A(u)      wrong, latent space: A(x1) - x0, with the same noise
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfm_lite import losses, negatives, perturbations
from cfm_lite.data import digits
from cfm_lite.draws import keyed_generator
from cfm_lite.paths import LINEAR, FlowSample
from cfm_lite.viz.style import ATTRACT, DIVERGING, REPEL, TRUTH, frame, panels, styled
from cfm_lite.widgets.explorer import Canvas, Explorer, choice, play_for, slider

__all__ = ["wrong_velocities"]

_SPACES = (("velocity: A(u)", "velocity"), ("latent (here: pixels): A(x₁) − x₀", "latent"))
_REACH = 3.0  # velocities beyond this have the end colours


def _strong(name: str) -> Callable[[float], Callable[..., Tensor]]:
    """strength in (0, 1] -> the perturbation: 0 leaves nearly everything, 1 is the strongest that
    still looks like something.
    """
    ranges: dict[str, Callable[[float], dict[str, Any]]] = {
        "crop_resize": lambda s: {"side": (1 - 0.7 * s - 1e-3, 1 - 0.7 * s)},
        "cutmix": lambda s: {"area": (0.75 * s, 0.75 * s + 1e-3)},
        "gaussian_blur": lambda s: {"sigma": (2.5 * s, 2.5 * s + 1e-3)},
        "color_jitter": lambda s: {"contrast": 0.9 * s, "brightness": 0.9 * s},
        "additive_noise": lambda s: {"std": 1.5 * s},
        "channel_shuffle": lambda s: {},
    }
    return lambda s: functools.partial(getattr(perturbations, name), **ranges[name](s))


_PERTURBATIONS = {
    name: _strong(name)
    for name in (
        "crop_resize",
        "cutmix",
        "gaussian_blur",
        "color_jitter",
        "additive_noise",
        "channel_shuffle",
    )
}


@styled
def wrong_velocities(
    perturb: str = "crop_resize", space: str = "latent", strength: float = 0.4, index: int = 0
) -> Explorer:
    """Explore negatives on real 8x8 digits: which digit, which perturbation, how strong, in which
    space, and at which time t.

    Top: the digit, its perturbed form and the state x_t. Bottom: the right velocity (green frame),
    the wrong one (vermilion frame) and their difference, signed. The bars compare the mean squared
    distance to the velocity of another digit, which ΔFM would take.
    """
    x1, y = digits.load("train")
    x1, y = x1[:64], y[:64]
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(5))
    figure, axes = panels(
        2, 4, width=9.6, height=4.75, gridspec_kw={"width_ratios": [1, 1, 1, 1.25]}
    )
    names = (
        ("digit $x_1$", "perturbed", "state $x_t$"),
        ("right: $u = x_1 - x_0$", "wrong: $u_{-}$", "$u_{-} - u$"),
    )
    images, titles = [], []
    for row, column in np.ndindex(2, 3):
        panel: Any = axes[row, column]
        color = {(1, 0): ATTRACT, (1, 1): REPEL}.get((row, column), TRUTH)
        look = (
            {"cmap": DIVERGING, "vmin": -_REACH, "vmax": _REACH}
            if row
            else {"cmap": "gray", "vmin": -1, "vmax": 1}
        )
        images.append(
            panel.imshow(np.zeros((8, 8)), interpolation="nearest" if row else "bicubic", **look)
        )
        panel.set_xticks([])
        panel.set_yticks([])
        frame(panel, color, 2.4 if color != TRUTH else 0.8)
        titles.append(panel.set_title(names[row][column], color=color, fontsize=10.5))
    bar = figure.colorbar(images[3], ax=axes[1, 2], shrink=0.9, ticks=[-3, 0, 3], extend="both")
    bar.set_label("velocity, per unit of $t$", fontsize=9)
    bars = axes[0, 3]
    drawn = bars.barh([1, 0], [1, 1], color=[REPEL, "#b0b0b0"], height=0.6)
    bars.set_yticks([1, 0], ["this negative", "another digit"])
    bars.set(xlim=(0, 4), xlabel="mean squared distance to $u$")
    bars.grid(False, axis="y")
    bars.set_title("How wrong?", loc="left", fontsize=10.5)
    axes[1, 3].remove()

    def update(index: int, perturb: str, strength: float, space: str, t: float) -> str:
        transform = _PERTURBATIONS[perturb](strength)
        every = torch.full((len(x1),), t)
        x_t, u = LINEAR.interpolate(x0, x1, every)
        sample = FlowSample(x0, x1, every, x_t, u, y)
        wrong = negatives.perturbed(transform, space=space)(
            sample, generator=keyed_generator("cpu", 3, perturb)
        )
        moved = (
            transform(x1, generator=keyed_generator("cpu", 3, perturb))
            if space == "latent"
            else wrong + x0
        )[index, 0]
        for image, picture in zip(
            images,
            (
                x1[index, 0],
                moved,
                x_t[index, 0],
                u[index, 0],
                wrong[index, 0],
                (wrong - u)[index, 0],
            ),
        ):
            image.set_data(picture.numpy())
        titles[1].set_text("perturbed $A(x_1)$" if space == "latent" else "implied $A(u) + x_0$")
        titles[2].set_text(f"state $x_t$, t = {t:.2f}")
        other = losses.squared_error(u[(index + 1) % len(u)][None], u[index][None]).item()
        mine = losses.squared_error(wrong[index][None], u[index][None]).item()
        for rectangle, value in zip(drawn, (mine, other)):
            rectangle.set_width(min(value, 4.0))
        mean = losses.squared_error(wrong, u).mean().item()
        return (
            f"Squared distance to u: {mine:.2f} for this digit, {mean:.2f} on average over 64; "
            f"another digit's velocity: {other:.2f}."
        )

    controls = {
        "strength": slider(
            "strength (0 to 1)",
            strength,
            0.05,
            1.0,
            0.05,
            tooltip="0 leaves nearly everything as it is",
        ),
        "t": slider(
            "time t (0 noise, 1 data)",
            0.5,
            0.0,
            1.0,
            0.02,
            tooltip="changes the state x_t, not the velocity: the path is linear",
        ),
        "index": slider(
            "digit, by its row",
            index,
            0,
            len(x1) - 1,
            1,
            tooltip="which of the first 64 training digits",
        ),
        "perturb": choice("perturbation A", list(_PERTURBATIONS), perturb),
        "space": choice("space", _SPACES, space),
    }
    canvas = Canvas(
        figure,
        [
            *images,
            titles[1],
            titles[2],
            *drawn,
            *(s for panel in axes[:, :3].flat for s in panel.spines.values()),
        ],
    )
    rows = [["strength", "t"], ["perturb", "space"], ["index"]]
    return Explorer(
        canvas,
        controls,
        update,
        rows=rows,
        play=play_for(controls["strength"], frames=19),
        title="Wrong velocities",
    )
