"""The optimizer: the default, what one of your own must hold, and its step with the gate."""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import check_number, listed, plain
from cfm_lite.engine import sharded
from cfm_lite.engine.settings import comparable
from cfm_lite.errors import ConfigError

__all__ = [
    "Groups",
    "backward",
    "check_optimizer",
    "clip_gradients",
    "make_optimizer",
    "update",
]

_FREE = (  # of a group: what a schedule notes, and what only says how a step is computed
    "params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable",
)  # fmt: skip


def make_optimizer(
    objective: nn.Module,
    lr: float | None,
    weight_decay: float | None,
    betas: tuple[float, float] | None,
) -> torch.optim.Optimizer:
    """Fused AdamW on what is trained; None is a default. ConfigError for a value out of range.

    >>> optimizer = make_optimizer(nn.Linear(2, 2), lr=None, weight_decay=None, betas=None)
    >>> optimizer.defaults["lr"], optimizer.defaults["betas"]
    (0.001, (0.9, 0.999))
    """
    decay = 0.0 if weight_decay is None else weight_decay
    return torch.optim.AdamW(
        [p for p in objective.parameters() if p.requires_grad],
        lr=check_number("lr", 1e-3 if lr is None else lr, 0.0, 1e6, open_low=True),
        betas=_pair_of_betas((0.9, 0.999) if betas is None else betas),
        weight_decay=check_number("weight_decay", decay, 0.0, math.inf),
        fused=True,
    )


def _pair_of_betas(betas: Any) -> tuple[float, float]:
    """AdamW's two decays, each in [0, 1); ConfigError for anything else."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ConfigError(
            f"betas is {betas!r:.60}; it must be two numbers in [0, 1), such as (0.9, 0.999)."
        )
    first, second = (
        check_number(f"betas[{i}]", beta, 0.0, 1.0, open_high=True) for i, beta in enumerate(betas)
    )
    return first, second


_UNUSABLE = {
    torch.optim.LBFGS: "asks for the loss several times a step",
    torch.optim.SparseAdam: "takes sparse gradients only",
}


def check_optimizer(optimizer: Any, objective: nn.Module, parallel: str, **settings: Any) -> None:
    """A given optimizer must hold all that is trained and nothing else.

    None is the default AdamW. Raises ConfigError, also for `settings` given together with an
    optimizer, and for an objective with nothing to train.

    >>> model = nn.Linear(2, 2)
    >>> check_optimizer(torch.optim.SGD(model.parameters(), 0.1), model, "ddp")  # it may train
    """
    trained = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    if not trained:
        raise ConfigError(
            "the objective has no parameter that requires a gradient; there is nothing to train."
        )
    if optimizer is None:
        return
    lost = [(name, value) for name, value in settings.items() if value is not None]
    if lost:
        name, value = lost[0]
        raise ConfigError(
            f"{name} = {value!r:.60} is given beside an optimizer, which has its own; leave out "
            f"{name}, or optimizer."
        )
    if parallel == "fsdp":
        raise ConfigError(
            "the optimizer given is for whole parameters; with parallel='fsdp' leave it out, or "
            "use 'ddp'."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer has type {type(optimizer).__name__}; it must be a torch.optim.Optimizer, "
            "or None for AdamW."
        )
    for kind, why in _UNUSABLE.items():
        if isinstance(optimizer, kind):
            raise ConfigError(
                f"the optimizer is {kind.__name__}, which {why}; give another, such as AdamW."
            )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ConfigError(
            "the optimizer has differentiable=True, which keeps the graph of each step; leave it "
            "out: nothing here is derived through a step."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missed = [name for name, p in trained if id(p) not in held]
    if missed:
        raise ConfigError(
            f"the optimizer does not hold {', '.join(missed[:3])}, which would never be trained. "
            "Build it from objective.parameters(), or freeze them with requires_grad_(False)."
        )
    if held - {id(p) for p in objective.parameters()}:
        raise ConfigError(
            "the optimizer holds parameters that the objective does not have; build it from "
            "objective.parameters()."
        )


def options_of(
    optimizer: torch.optim.Optimizer, objective: nn.Module, schedule: Callable[[int], float]
) -> dict[str, Any]:
    """What decides a run: each option with its value in every group, before the first step; the
    numbers of each group's parameters in the objective; and the schedule if it can be compared.

    >>> model = nn.Linear(2, 2)
    >>> options = options_of(torch.optim.SGD(model.parameters(), lr=0.1), model, lambda step: 1.0)
    >>> options["lr"], options["momentum"], options["parameters"]
    ([0.1], [0], [[0, 1]])
    """
    # asked before the first step: some optimizers keep what they count among their options
    groups = optimizer.param_groups
    names = dict.fromkeys(name for group in groups for name in group if name not in _FREE)
    numbers = {id(p): i for i, p in enumerate(objective.parameters())}
    held = [[numbers[id(p)] for p in group["params"]] for group in groups]
    options = {name: [plain(group.get(name)) for group in groups] for name in names}
    return options | {"parameters": held, "schedule": comparable(schedule)}


class Groups:
    """The groups of the optimizer, as they were when the trainer was made.

    >>> model = nn.Linear(1, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> Groups(sgd, model).begin(0.5, step=0)
    >>> sgd.param_groups[0]["lr"]
    0.05
    """

    def __init__(self, optimizer: torch.optim.Optimizer, objective: nn.Module) -> None:
        self._optimizer, self._objective = optimizer, objective
        self._own = [plain(group["lr"]) for group in optimizer.param_groups]
        # with the rates that were set last; a resumed optimizer has groups of its file instead
        self._last = [(group, group["lr"]) for group in optimizer.param_groups]
        self._every = list(objective.parameters())
        self._frozen = [p for p in self._every if not p.requires_grad]

    def check_same(self, objective: nn.Module) -> None:
        """Raises ConfigError for a parameter to train that `objective` did not have then.

        load_state_dict(assign=True) puts in such ones, and so does an adapter.
        """
        if sharded.is_sharded(objective):  # whose parameters are others while they are gathered
            return
        known = set(map(id, self._every))
        named = objective.named_parameters()
        names = [name for name, p in named if p.requires_grad and id(p) not in known]
        if names:
            raise ConfigError(
                f"{listed(names)} came into the network after the trainer was made, so the "
                "optimizer does not hold it and it would never be trained. Make a new Trainer."
            )

    def begin(self, factor: float, step: int) -> None:
        """Forget the gradients of the step before; each group's rate is `factor` times its own.

        Raises ConfigError for a factor that is below 0 or not finite, and for a rate, a group or a
        parameter to train that somebody else has changed: the trainer would not follow.
        """
        check_number(f"schedule({step})", factor, 0.0, math.inf)
        groups = self._optimizer.param_groups
        self._check(groups)
        self._last = []
        for group, rate in zip(groups, self._own):
            # a tensor could not be saved, and not every optimizer takes one
            group["lr"] = float(rate * factor)
            self._last.append((group, group["lr"]))
            for p in group["params"]:
                p.grad = None

    def _check(self, groups: Sequence[dict[str, Any]]) -> None:
        if len(groups) != len(self._own):
            raise ConfigError(
                f"the optimizer has {len(groups)} groups, and had {len(self._own)} when the "
                "trainer was made. Make a new Trainer with it."
            )
        for group, (same, last) in zip(groups, self._last):
            if group is same and group["lr"] is not last and plain(group["lr"]) != plain(last):
                raise ConfigError(
                    f"a learning rate was changed from {plain(last):g} to {plain(group['lr']):g}, "
                    "as by a scheduler of torch; the trainer sets it at each step and would lose "
                    "the change. Give Trainer(schedule=...), a function of the step."
                )
        if any(p.requires_grad for p in self._frozen):
            now = {id(p) for p in self._frozen if p.requires_grad}
            names = [name for name, p in self._objective.named_parameters() if id(p) in now]
            raise ConfigError(
                f"{listed(names)} was frozen when the trainer was made and is not now; its "
                "gradient would be neither clipped nor exchanged, and an optimizer without it "
                "would not train it. Make a new Trainer."
            )


def backward(total: Tensor, share: float) -> None:
    """Add the gradients of one micro-batch, which is `share` of the batch.

    Raises ConfigError for a loss without a gradient.

    >>> w = torch.ones(1, requires_grad=True)
    >>> for micro_batch in range(2):
    ...     backward((3 * w).sum(), share=0.5)
    >>> w.grad
    tensor([3.])
    """
    if not total.requires_grad:
        raise ConfigError(
            "the loss has no gradient: the model's velocity was detached, or made under "
            "torch.no_grad()."
        )
    (total * share if share < 1 else total).backward()


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], bound: float | None) -> Tensor:
    """The norm of all gradients together, which are then scaled to at most `bound`.

    The bits are those of torch's two functions, which sort gradients by device and dtype each time.

    >>> w = torch.zeros(2, requires_grad=True)
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([w], bound=1.0), w.grad
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    grads: list[Any] = [p.grad for p in parameters if p.grad is not None]
    if not (alike := _are_alike(grads)):
        norm = sharded.full(nn.utils.get_total_norm(grads))
    else:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    # on the host the norm can be read; torch would multiply every gradient by exactly 1
    if bound is None or (norm.device.type == "cpu" and norm.item() + 1e-6 < bound * (1 - 1e-6)):
        return norm
    if alike:
        torch._foreach_mul_(grads, torch.clamp(bound / (norm + 1e-6), max=1.0))
    else:
        nn.utils.clip_grads_with_norm_(parameters, bound, norm)
    return norm


def _are_alike(grads: list[Tensor]) -> bool:
    """Whether one kernel can take all: plain tensors of one dtype on one CPU or CUDA device."""
    if not grads or grads[0].device.type not in ("cpu", "cuda"):
        return False
    dtype, device = grads[0].dtype, grads[0].device
    return all(type(g) is Tensor and g.dtype == dtype and g.device == device for g in grads)


def update(optimizer: Any, ok: Tensor | None) -> bool:
    """A step of the optimizer unless the gate `ok` is 0; whether it was done. None: without a gate.

    A fused kernel reads the gate on the device. Other optimizers cost one host read a step.

    >>> w = torch.ones(1, requires_grad=True)
    >>> w.grad = torch.ones(1)
    >>> update(torch.optim.SGD([w], lr=0.1), ok=torch.tensor(0.0)), w.item()  # the gate is shut
    (False, 1.0)
    """
    if ok is not None:
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf, optimizer.grad_scale = 1.0 - ok, None
        elif not ok.item():
            return False
    _step(optimizer)
    return True


# torch keeps these to itself: where another release has them elsewhere, every step is the whole one
_TORCH: Any = sys.modules[torch.optim.Optimizer.__module__]
_WRAP: Any = getattr(torch.optim.Optimizer, "profile_hook_step", functools.partial)
_WRAPPER = getattr(_WRAP(len), "__code__", None)


def _step(optimizer: Any) -> None:
    """`optimizer.step()`; without torch's entry for a profiler, 5 % of a small step, if that is all
    that its wrapper would add.
    """
    if _is_heard(optimizer):
        optimizer.step()
    else:
        type(optimizer).step.__wrapped__(optimizer)


def _is_heard(optimizer: Any) -> bool:
    """Whether a hook, a profiler or a wrapper of somebody else waits for the step."""
    if getattr(type(optimizer).step, "__code__", 0) is not _WRAPPER or "step" in vars(optimizer):
        return True
    try:
        return bool(
            optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or _TORCH._global_optimizer_pre_hooks
            or _TORCH._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
    except AttributeError:
        return True
