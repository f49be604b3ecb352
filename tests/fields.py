"""The fields of the sampler fixtures, in our convention, as models (x, t, y) -> velocity with a
null label.

`Mixture` is the exact field of a Gaussian mixture, one component per class, the whole of it for the
null label. `Network` is the fixtures' small tanh network. REPA's network runs time the other way:
v(x, t) = -network(x, 1 - t).
"""

import math

import torch
from torch import Tensor

from cfm_lite.guidance import Velocity
from cfm_lite.paths import COSINE, LINEAR, VP, Path
from tests.reference import case, settings

PATHS = {"Linear": LINEAR, "GVP": COSINE, "VP": VP, "linear": LINEAR, "cosine": COSINE}


class Field:
    """A model that remembers its calls, as (t of the first row, rows), and works in `dtype` if one
    is given.
    """

    num_classes: int

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype, self.calls = dtype, []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert t.shape == (len(x),)
        self.calls.append((float(t[0]), len(x)))
        y = torch.full((len(x),), self.num_classes) if y is None else y
        work = self.dtype or x.dtype
        return self.velocity(x.to(work), t.to(work), y).to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


class Mixture(Field):
    """`prediction` "score" or "noise" is turned into a velocity by the path, as a network's would
    be. Always in float64.
    """

    def __init__(
        self,
        file: str,
        path: Path = LINEAR,
        prediction: str = "velocity",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dtype)
        given = case(file, "gmm")
        self.means, self.variances, self.log_weights = (
            given["means"],
            given["stds"] ** 2,
            given["weights"].log(),
        )
        self.path, self.prediction, self.num_classes = path, prediction, len(self.means)

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, t = x.double(), t.double()
        alpha, sigma, d_alpha, _ = self.path.coefficients(t, x)  # (B, 1)
        spread = alpha**2 * self.variances + sigma**2  # (B, K)
        offset = x[:, None] - alpha[..., None] * self.means  # (B, K, D)
        other = (y[:, None] != torch.arange(self.num_classes)) & (y[:, None] != self.num_classes)
        log_joint = (
            self.log_weights - 0.5 * x.shape[1] * spread.log() - 0.5 * (offset**2).sum(2) / spread
        )
        joint = log_joint.masked_fill(other, -math.inf).sub(log_joint.amax(1, keepdim=True)).exp()
        shares = (joint / joint.sum(1, keepdim=True))[
            ..., None
        ]  # (B, K, 1); softmax would wake torch's threads at every call
        score = -(shares * offset / spread[..., None]).sum(1)
        if self.prediction == "velocity":
            data = (
                shares * (self.means + (alpha * self.variances / spread)[..., None] * offset)
            ).sum(1)
            return d_alpha * data - self.path.half_variance_rate(t)[:, None] * score
        if self.prediction == "noise":
            score = -(-sigma * score) / sigma
        return self.path.velocity_from_score(x, score, t)


class Network(Field):
    def __init__(self, file: str, reverse: bool = False, dtype: torch.dtype | None = None) -> None:
        super().__init__(dtype)
        self.weights, self.reverse = case(file, "mlp"), reverse
        self.num_classes = len(self.weights["emb"]) - 1

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        w = {name: value.to(x.dtype) for name, value in self.weights.items()}
        time = 1 - t if self.reverse else t
        h = torch.cat([x.flatten(1), time[:, None], w["emb"][y]], 1)
        h = torch.tanh(h @ w["W1"].T + w["b1"])
        h = torch.tanh(h @ w["W2"].T + w["b2"])
        out = (h @ w["W3"].T + w["b3"]).reshape(x.shape)
        return -out if self.reverse else out


def sit_field(name: str) -> tuple[Field, Tensor, Tensor]:
    """(model, start, labels) of a case of samplers_sit, whose null label is 1000."""
    init, given = case("samplers_sit", "init"), settings("samplers_sit")[name]
    if given["field"] == "mlp":
        return Network("samplers_sit"), init["latents_mlp"], init["y_mlp"]
    model = Mixture("samplers_sit", PATHS[given["path"]], given["prediction"])
    return model, init["latents_gmm"], init["y_gmm"].clamp(max=model.num_classes)


def seen_by(velocity: Velocity, states: list[Tensor]) -> Velocity:
    """The velocity, which also puts every state that it is asked about into `states`."""

    def watching(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return velocity(x, t)

    return watching
