"""The dispersive loss on the features of a SiT-XL/2 block, 256 x 294,912 (256 tokens of width
1152), forward and backward, float32.

The other side is the form of the official programs: all pairwise distances by pdist, squared and
divided by d, each pair counted twice and the diagonal once. Memory is what the highest resident
size of a process of its own grows by during one forward and backward, in sizes of the gradient,
which every form must hold: 1.0 is the least.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cfm_lite import losses
from cfm_lite.errors import CFMError
from tools.benchmarks.harness import CannotRun, Clock, Row, count, elsewhere, faster

B, D, TAU, SLABS = 256, 294_912, 0.5, 128
STATUS = Path("/proc/self/status")


def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    h = torch.randn(B, D, requires_grad=True)
    check_agreement(h[:64, :4096].detach().double())
    sides = {name: forward_backward(form, h) for name, form in FORMS.items()} | {
        "products": products()
    }
    times = clock(sides, repeats=7, block=0)
    size = f"dispersive, {B} x {D:,}"
    note = "floor: only the multiplications. On CUDA pdist's backward needs a buffer of 77 GB here"
    yield faster(
        f"{size}: over the pdist form",
        times,
        "ours",
        "pdist",
        goal=12.0,
        floor="products",
        note=note,
    )
    if not STATUS.exists():
        raise CannotRun(f"the peak memory is read from {STATUS}, which only Linux has")
    for name, goal in (("ours", 1.05), ("pdist", None)):
        peak = elsewhere("dispersive", f"growth({name!r})")
        yield count(f"{size}: peak memory of {name}", peak, goal, floor=1.0, unit=" gradients")


def ours(h: Tensor) -> Tensor:
    """The library's."""
    return losses.dispersive(h, tau=TAU)


def pdist(h: Tensor) -> Tensor:
    """log mean exp(-|h_i - h_j|^2 / (d tau)) over all ordered pairs, from the distances of the
    unordered ones.
    """
    gaps = F.pdist(h).square() / h.shape[1]
    return ((2 * (-gaps / TAU).exp().sum() + len(h)) / len(h) ** 2).log()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {"ours": ours, "pdist": pdist}


def forward_backward(form: Callable[[Tensor], Tensor], h: Tensor) -> Callable[[], None]:
    """One value and its gradient; the gradient of the call before is freed first."""

    def side() -> None:
        h.grad = None
        form(h).backward()

    return side


def products() -> Callable[[], None]:
    """The floor: the multiplications of half of h h' and of one product with h, on operands that
    stay in the cache.
    """
    width = D // SLABS
    slab, weights = torch.randn(B, width), torch.rand(B, B)
    half, whole = torch.empty(B // 2, B), torch.empty(B, width)

    def side() -> None:
        for _ in range(SLABS):
            torch.mm(slab[: B // 2], slab.T, out=half)
            torch.mm(weights, slab, out=whole)

    return side


def check_agreement(h: Tensor) -> None:
    """Both forms have one value and one gradient; CFMError if not, for then their times cannot be
    compared.
    """
    leaves = [h.clone().requires_grad_() for _ in FORMS]
    values = [form(leaf) for form, leaf in zip(FORMS.values(), leaves)]
    gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip(values, leaves)]
    if not (
        torch.allclose(*values, rtol=1e-9) and torch.allclose(*gradients, rtol=1e-6, atol=1e-12)
    ):
        raise CFMError("the two forms of the dispersive loss differ; there is nothing to compare.")


def growth(name: str) -> float:
    """The growth of the peak over one forward and backward, in sizes of the gradient, in a process
    that does nothing else.
    """
    # loads what is loaded once
    forward_backward(FORMS[name], torch.randn(B, 1024, requires_grad=True))()
    h = torch.randn(B, D, requires_grad=True)
    # h was the last to be allocated, so this is also the size now
    before = _highest_resident_size()
    forward_backward(FORMS[name], h)()
    return (_highest_resident_size() - before) / (h.numel() * h.element_size())


def _highest_resident_size() -> int:
    # not resource.ru_maxrss: a new process inherits in it the peak of the one that started it
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(found[1]) if found else 0
