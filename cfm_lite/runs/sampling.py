"""Samples of any run: labels, noise, velocity, and the solver from noise to samples.

`Settings` hold everything that the samples depend on. Every draw is keyed, so it can be repeated. A
run on points or pixels has one stream of noise for all samples; only the SDE's noise depends on how
many are drawn at once. A run on latents has one stream for each part of `batch` samples. So any
number of ranks can share the parts, and a folder of samples can grow.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cfm_lite import guidance, samplers
from cfm_lite._internal.checks import check_choice, check_count, check_number, plain, promote
from cfm_lite.data import captions, words
from cfm_lite.draws import check_labels_word, class_labels, keyed_generator
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import Velocity
from cfm_lite.methods import debiasing
from cfm_lite.models.text import check_texts
from cfm_lite.paths import PATHS, Path
from cfm_lite.runs.recipe import SOLVERS, Recipe, check_null
from cfm_lite.runs.run import Run
from cfm_lite.runs.spec import Spec

__all__ = [
    "Settings",
    "captions_in_turn",
    "draw_part",
    "draw_rows",
    "draw_run",
    "guided",
    "in_parts",
    "labels_of",
    "noise_of",
    "recorded",
    "settings_of",
    "solve",
    "velocity_of",
]

SAMPLES, SETTINGS = "samples.npz", "settings.json"  # what a folder of samples holds
AT_ONCE, A_PART = 1000, 64  # samples drawn at once: of points and pixels, and of latents


@dataclass(frozen=True)
class Settings:
    """What the samples depend on. For the SDE `steps` are network evaluations, for the ODE solver
    steps.

    Raises ConfigError for a number, an interval or labels out of range, an SDE of one step, and an
    interval in which the solver has no time.

    >>> settings = Settings(num=100, batch=64)
    >>> settings.parts, settings.count(1)
    (2, 36)
    """

    num: int
    seed: int = 0
    solver: str = "euler"  # of the ODE; "sde" is Euler-Maruyama
    steps: int = 250
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    debias: bool = False
    batch: int = A_PART
    labels: str = "turn"  # the classes in turn, "random", or some of them such as "3,7"
    # of a run on captions: these in turn; without any, `words` takes seen and held-out ones
    prompts: tuple[str, ...] = ()
    negative: str = ""  # the caption that guidance moves away from; "" is the empty one

    def __post_init__(self) -> None:
        for name, low in (("num", 1), ("seed", 0), ("steps", 1), ("batch", 1)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), low))
        check_choice("solver", self.solver, (*SOLVERS, "sde"))
        check_number("guidance", self.guidance, -float("inf"), float("inf"))
        object.__setattr__(self, "guidance", plain(self.guidance))
        guidance.check_interval(self.interval)
        check_labels_word(self.labels)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.solver == "sde":
            _check_sde_steps(self.steps)
        self._check_guided()

    def _check_guided(self) -> None:
        """ConfigError if guidance acts at no time of the solver."""
        low, high = self.interval
        cost = samplers.evaluations(self.solver, self.steps, self.guidance, (low, high))
        if self.guidance != 1 and cost.rows == cost.nfe:
            times = samplers.evaluated_at(self.solver, self.steps)
            near = min(times, key=lambda t: max(low - t, t - high))
            raise ConfigError(
                f"the interval is {low:g} to {high:g}, and {self.steps} steps of {self.solver} "
                f"evaluate the network at no time in it: the nearest is {near:.6g}. Widen the "
                "interval to it, or take more steps."
            )

    @property
    def parts(self) -> int:
        """The number of parts of `batch` samples; the last may be smaller."""
        return -(-self.num // self.batch)

    def count(self, part: int) -> int:
        """The number of samples in a part."""
        return min(self.batch, self.num - part * self.batch)


def settings_of(run: Run, num: int, **given: Any) -> Settings:
    """`Settings` for a run. The recipe decides what is not `given`, or is None.

    Raises ConfigError for captions that the run cannot read, and as `Settings` does.

    >>> from cfm_lite.pretrained import run_of
    >>> settings_of(run_of("toy_fm"), 100, steps=10).steps
    10
    """
    if given.get("negative") == "":
        raise ConfigError(
            "negative is empty, and guidance moves away from the empty caption by itself; say what "
            "to avoid, such as 'a blue star', or leave it out."
        )
    recipe = run.recipe
    own = {"solver": recipe.solver, "steps": recipe.sample_steps, "guidance": recipe.guidance}
    own["batch"] = A_PART if in_parts(run) else AT_ONCE
    settings = Settings(num, **own | {name: x for name, x in given.items() if x is not None})
    if _spec(run).condition == "captions":
        _check_captions(run, settings)
    return settings


def said_in(settings: Settings) -> list[str]:
    """The captions that the settings hold, with the negative one."""
    return [*settings.prompts, *([settings.negative] if settings.negative else [])]


def _check_captions(run: Run, settings: Settings) -> None:
    """ConfigError for captions that the run cannot read, and if it needs some and has none."""
    said = said_in(settings)
    if _spec(run).text is None:
        captions.encode(said)  # the negative one may name a colour alone
        for prompt in settings.prompts:
            captions.parse(prompt)
    elif not settings.prompts:
        raise ConfigError(
            f"a run on {run.recipe.dataset} needs a caption, and none was given; give --prompt "
            "TEXT, or cfm-lite scale sample --captions FILE."
        )
    elif not all(text.strip() for text in check_texts(said)):
        raise ConfigError("a caption is empty; say what to draw, such as 'a dog on a mat'.")


def recorded(run: Run, settings: Settings) -> dict[str, Any]:
    """What is saved with the samples: how they were drawn, and from which network.

    Raises ConfigError for a run without a spec.

    >>> from cfm_lite.pretrained import run_of
    >>> run = run_of("toy_fm")
    >>> recorded(run, settings_of(run, 100))["recipe"]["method"]
    'fm'
    """
    spec = _spec(run)
    return {
        **asdict(settings),
        "interval": list(settings.interval),
        "weights": run.weights,
        "step": run.step,
        "average": run.average,
        "recipe": run.recipe.as_dict(),
        "vae": spec.vae,
        "vae_fingerprint": spec.vae_fingerprint,
        **({"text": spec.text, "text_fingerprint": spec.text_fingerprint} if spec.text else {}),
    }


def in_parts(run: Run) -> bool:
    """Whether noise and labels are keyed by the part. They are for a run on latents.

    Raises ConfigError for a run without a spec.

    >>> from cfm_lite.pretrained import run_of
    >>> in_parts(run_of("toy_fm"))  # points, no latents
    False
    """
    return _spec(run).vae is not None


def labels_of(run: Run, settings: Settings, part: int) -> Tensor:
    """The labels (n,) of one part, or its captions as word numbers (n, L) or features (n, L, D).

    If parts are keyed, random labels depend on (seed, part) alone, not on the number of rows.

    Raises ConfigError for a run without a spec.

    >>> from cfm_lite.pretrained import run_of
    >>> run = run_of("toy_fm")
    >>> labels_of(run, settings_of(run, 5), part=0)
    tensor([0, 1, 0, 1, 0])
    """
    classes, first, n = _spec(run).num_classes, part * settings.batch, settings.count(part)
    if _spec(run).condition == "captions":
        if settings.prompts:
            rows = torch.arange(first, first + n, device="cpu") % len(settings.prompts)
            return _read(run, [settings.prompts[row] for row in rows.tolist()])
        return captions_in_turn(first + n, settings.seed)[first:]
    if in_parts(run):
        generator = keyed_generator("cpu", settings.seed, "samples' labels", part)
        return class_labels(
            settings.labels, classes, settings.batch, first=first, generator=generator
        )[:n]
    generator = keyed_generator("cpu", settings.seed, "labels")
    return class_labels(settings.labels, classes, settings.num, generator=generator)[
        first : first + n
    ]


def captions_in_turn(n: int, seed: int = 0) -> Tensor:
    """`n` captions (n, L) of `words`: combinations that training shows, and in turn those that it
    never does.

    >>> len(captions.decode(captions_in_turn(2)))
    2
    """
    splits = [words.load(split, (n + 1) // 2, seed=seed).y for split in ("seen", "held_out")]
    return torch.stack(splits, dim=1).flatten(0, 1)[:n]


def noise_of(
    shape: tuple[int, ...], n: int, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The noise (n, *shape) that samples of points and pixels start from: float32's, as `dtype`.

    >>> torch.equal(noise_of((2,), 4, seed=0), noise_of((2,), 4, seed=0))
    True
    """
    g = keyed_generator("cpu", seed, "sampling noise")
    # whatever torch's default type is: in float64 a seed gives other noise
    return torch.randn(n, *shape, generator=g, device="cpu", dtype=torch.float32).to(dtype)


def guided(
    run: Run,
    y: Tensor,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    negative: str = "",
    change: Callable[[Velocity], Velocity] | None = None,
) -> Velocity:
    """The guided velocity for conditions `y`, then its `change`, then faster at the noise if the
    recipe has a boost.

    Guidance moves away from the caption `negative`, or from the null condition.

    Raises ConfigError for what `guidance.cfg` refuses, a caption with an unknown word, and a null
    condition that the run never trained.

    >>> from cfm_lite.pretrained import run_of
    >>> velocity = guided(run_of("toy_fm"), torch.tensor([0, 1]), scale=1.5)
    >>> velocity(torch.zeros(2, 2), torch.zeros(2)).shape
    torch.Size([2, 2])
    """
    # a fine-tuned network may have learned its null condition before the run
    if not negative and "start" not in run.data:
        check_null(run.recipe, scale)
    away = _read(run, [negative]).to(y).expand_as(y) if negative else None
    velocity = guidance.cfg(run.model, y, scale, interval, negative=away)
    # what a method did is undone at the network's own speed: the boost is no part of it
    velocity = change(velocity) if change else velocity
    return guidance.rescale_in_time(velocity, run.recipe.boost, run.recipe.boost_power)


def _read(run: Run, said: Sequence[str]) -> Tensor:
    """Captions as the run's network takes them."""
    return run.features(said) if _spec(run).text else captions.encode(said)


def velocity_of(run: Run, settings: Settings, y: Tensor) -> Velocity:
    """The guided velocity for labels `y` (B,). Debiased, it aims at FM's optimum again.

    ConfigError if `debias` is set and the run's method has no inverse.

    >>> from cfm_lite.pretrained import run_of
    >>> run = run_of("toy_vecor")
    >>> velocity = velocity_of(run, settings_of(run, 2, debias=True), torch.tensor([0, 1]))
    >>> velocity(torch.zeros(2, 2), torch.zeros(2)).shape
    torch.Size([2, 2])
    """
    undo = None
    if settings.debias:
        undo = functools.partial(debiasing(run.recipe), settings=run.recipe, data=_Known(run))
    return guided(run, y, settings.guidance, settings.interval, settings.negative, undo)


def solve(
    velocity: Velocity,
    x: Tensor,
    steps: int,
    solver: str,
    path: Path,
    generator: torch.Generator,
) -> Tensor:
    """Samples from noise `x` by an ODE solver, or by Euler-Maruyama for "sde".

    The SDE takes `steps` >= 2; its last step adds no noise.

    Raises ConfigError for an SDE of fewer than 2 steps.

    >>> g = keyed_generator("cpu", 0, "sde")
    >>> solve(lambda x, t: x, torch.ones(1, 1), 100, "heun", PATHS["linear"], g)  # e is 2.71828
    tensor([[2.7182]])
    """
    if solver != "sde":
        ts = torch.linspace(0, 1, steps + 1, device="cpu", dtype=promote(x[:0]).dtype)
        return samplers.sample(velocity, x, ts, SOLVERS[solver])
    _check_sde_steps(steps)
    ts = torch.linspace(0, 1 - samplers.SDE_END, steps, device="cpu", dtype=promote(x[:0]).dtype)
    return samplers.sample_sde(
        velocity, x, ts, path, last_step_size=samplers.SDE_END, generator=generator
    )


def _check_sde_steps(steps: int) -> None:
    if steps < 2:
        raise ConfigError(
            f"steps is {steps}; the SDE needs at least 2, because its last step adds no noise."
        )


def draw_rows(
    velocity: Callable[[Tensor], Velocity],
    x0: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    steps: int,
    solver: str,
    seed: int,
    batch: int,
    device: torch.device,
) -> Tensor:
    """Samples (N, *dims), on the host, from noise `x0` (N, *dims) for labels `y` (N,).

    `batch` of them are drawn at once. `velocity` makes the velocity for some labels.

    >>> settings = {"steps": 4, "solver": "euler", "seed": 0, "batch": 2}
    >>> x0, y, device = torch.ones(3, 1), torch.zeros(3), torch.device("cpu")
    >>> draw_rows(lambda y: lambda x, t: 0 * x, x0, y, Recipe(), **settings, device=device).shape
    torch.Size([3, 1])
    """
    parts = []
    for first in range(0, len(y), batch):
        some = slice(first, first + batch)
        generator = keyed_generator("cpu", seed, "sde", first)
        v, x = velocity(y[some].to(device)), x0[some].to(device)
        parts.append(solve(v, x, steps, solver, PATHS[recipe.path], generator).cpu())
    return torch.cat(parts)


def draw_run(run: Run, settings: Settings) -> tuple[Tensor, Tensor]:
    """All samples (N, *dims) of a run on points or pixels, and their labels (N,).

    Raises ConfigError as `velocity_of` does, and DivergenceError for a state that is not finite.

    >>> from cfm_lite.pretrained import run_of
    >>> run = run_of("toy_fm")
    >>> x, y = draw_run(run, settings_of(run, 6, steps=4))
    >>> x.shape, y.shape
    (torch.Size([6, 2]), torch.Size([6]))
    """
    y = torch.cat([labels_of(run, settings, part) for part in range(settings.parts)])
    x = draw_rows(
        lambda some: velocity_of(run, settings, some),
        noise_of(_spec(run).shape, settings.num, settings.seed, run.dtype),
        y,
        run.recipe,
        steps=settings.steps,
        solver=settings.solver,
        seed=settings.seed,
        batch=settings.batch,
        device=run.device,
    )
    return x, y


def draw_part(run: Run, settings: Settings, part: int) -> Tensor:
    """The latents (n, C, h, w) of one part of a run on latents, on the network's device.

    Raises ConfigError for a run without a spec.
    """
    device = run.device
    y = labels_of(run, settings, part).to(device)
    keys = [
        keyed_generator("cpu", settings.seed, name, part) for name in ("samples", "samples' noise")
    ]
    shape = (settings.batch, *_spec(run).shape)
    noise = torch.randn(shape, generator=keys[0], device="cpu", dtype=torch.float32)
    x, path = noise[: len(y)].to(device, run.dtype), PATHS[run.recipe.path]
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        velocity = velocity_of(run, settings, y)
        return solve(velocity, x, settings.steps, settings.solver, path, keys[1])


@dataclass(frozen=True)
class _Known:
    """What the inverse of a method may know of a run's data. The mean is read only when it is
    needed.
    """

    run: Run

    @property
    def shape(self) -> tuple[int, ...]:
        return _spec(self.run).shape

    @property
    def mean(self) -> Tensor:
        mean = self.run.mean()
        return mean.to(self.run.device) if in_parts(self.run) else mean  # once, not at every step


def _spec(run: Run) -> Spec:
    if run.spec is None:
        raise ConfigError("the run has no spec; open it with Run.open, or give Run(spec=...).")
    return run.spec
