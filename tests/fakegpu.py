"""A device without numbers: what a training step does on a GPU, shown where there is none.

    python -m tests.fakegpu "step('vecor')"     one JSON line: [{"reads": [...], "copies": [...], "calls": n, "by_name": {...}}]

torch's fake tensors carry shape, dtype and device alone, so whatever would wait for a GPU
(`.item()`, a boolean mask, `nonzero`) raises. Their device is torch's spare backend under the name
"gpu": all code that asks "is this the CPU?" takes the device's way. It registers itself with torch
for good, so it runs in a process of its own.
"""

import gc
import json
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from cfm_lite import draws, guidance, samplers
from cfm_lite._internal import kernels
from cfm_lite.engine import average
from cfm_lite.engine.guard import Guard
from cfm_lite.models import mmdit, sit
from cfm_lite.runs.imagenet import build_imagenet_trainer, imagenet
from cfm_lite.scale.dry_run import Made

ROOT = Path(__file__).parents[1]
DEVICE = "gpu"
BATCH, SHARD = 16, 8
PLAIN = Made((4, 32, 32), 1000)
VIEWS = {"view", "_unsafe_view", "expand", "slice", "select", "t", "transpose", "permute", "unsqueeze", "squeeze", "split", "unbind",
         "detach", "device", "alias", "as_strided", "reshape", "chunk", "_local_scalar_dense", "lift_fresh"}  # fmt: skip


class Generator(torch.Generator):
    """A generator of the CPU that says it is on the device; what it draws has no value anyway."""

    @property
    def device(self) -> torch.device:
        return torch.device(DEVICE)


class Watch(TorchDispatchMode):
    """Counts the operators that run on the device, and notes copies between it and the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        places = {
            x.device.type
            for x in _tensors((args, kwargs, out))
            if x.dim() or name in ("_to_copy", "copy_")
        }
        if name in ("_to_copy", "copy_", "_pin_memory") and len(places) > 1:
            self.copies.append(name)
        if DEVICE in {x.device.type for x in _tensors((args, kwargs, out))} and name not in VIEWS:
            self.calls[name] += 1
        return out


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register() -> None:
    """Make the device known to torch; once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=_Backend())
    _ATEN.impl(
        "_fused_sgd_", lambda *args, **kwargs: None, "Meta"
    )  # torch has none for fake tensors
    _REST.fallback(torch.library.fallthrough_kernel)
    for name, dtype in (
        *((name, torch.bfloat16) for name in LOWER),
        *((name, torch.float32) for name in UPPER),
    ):
        _ATEN.impl(name, _cast(getattr(torch.ops.aten, name), dtype), "AutocastPrivateUse1")


LOWER = (
    "linear",
    "conv2d",
    "matmul",
    "scaled_dot_product_attention",
)  # what CUDA's autocast does to what we call
UPPER = (
    "layer_norm",
    "mse_loss",
    "addcmul",
)  # addcmul goes to the widest type, and here one part always is float32
_ATEN, _REST = (
    torch.library.Library("aten", "IMPL"),
    torch.library.Library("_", "IMPL", "AutocastPrivateUse1"),
)
_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _cast(op: Any, dtype: torch.dtype) -> Any:
    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            return op(
                *(
                    x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
                    for x in args
                ),
                **kwargs,
            )

    return cast


@contextmanager
def device() -> Iterator[None]:
    """Fake tensors, and generators that go with them."""

    def keyed(place: Any, *key: Any) -> torch.Generator:
        return Generator()

    with patch.object(draws, "keyed_generator", keyed), _MODE:
        yield


_MODE = FakeTensorMode()
FakeTensorMode.__deepcopy__ = lambda self, memo: self  # pyright: ignore[reportAttributeAccessIssue]


def trainer(preset: str, **changes: Any) -> Any:
    """The trainer of an ImageNet preset with a tiny SiT on the device; call it inside `device()`."""
    recipe = imagenet(
        preset,
        model="SiT-Ti/2",
        batch=BATCH,
        shard=SHARD,
        precision="bf16",
        size=64,
        clip=1.0,
        **changes,
    )

    def teacher(
        images: Tensor,
    ) -> Tensor:  # of features that were computed before: 16 tokens of width 32
        return images.flatten(1)[:, : 16 * 32].reshape(-1, 16, 32)

    teacher.dim = 32  # pyright: ignore[reportFunctionMemberAccess]
    with (
        patch.object(torch.Tensor, "__bool__", lambda self: True),
        patch.object(nn.Module, "to", _move),
    ):  # what is read once, at the start
        return build_imagenet_trainer(
            recipe, Made((4, 8, 8), 10), device=DEVICE, teacher=teacher if recipe.align else None
        )


def _move(self: nn.Module, place: Any) -> nn.Module:
    """Like `Module.to`, which cannot swap fake tensors."""
    for module in self.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(p.detach().to(place), p.requires_grad)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else b.to(place)
    return self


def batch(preset: str) -> tuple[Tensor, ...]:
    """Latents, labels and, for REPA, pictures, all on the device."""
    x1, y = (
        torch.randn(BATCH, 4, 8, 8, device=DEVICE),
        torch.zeros(BATCH, dtype=torch.long, device=DEVICE),
    )
    return (
        (x1, y, torch.zeros(BATCH, 3, 64, 64, dtype=torch.uint8, device=DEVICE))
        if "repa" in preset
        else (x1, y)
    )


def step(preset: str, **changes: Any) -> dict[str, Any]:
    """What the second step of a run does, neither it nor the first being logged: host reads,
    copies, operators by name.
    """
    watch, reads = Watch(), []
    with device(), patch.object(average, "_FUSED", (DEVICE,)):
        built, data = trainer(preset, **changes), batch(preset)
        try:
            built._train_step(data, last=False)
            with watch:
                built._train_step(data, last=False)
        except Exception as error:  # each kind of host read has its own
            reads.append(f"{type(error).__name__}: {error}".splitlines()[0])
    return {
        "reads": reads,
        "copies": watch.copies,
        "calls": sum(watch.calls.values()),
        "by_name": watch.calls,
    }


class Memory(TorchDispatchMode):
    """The bytes that live on the device, and the most there ever were, in blocks of 512 as CUDA's
    allocator counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._seen: Any = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            storage = x.untyped_storage()
            if x.device.type == DEVICE and storage not in self._seen:
                self._seen[storage] = size = -(-storage.nbytes() // 512) * 512
                self.now += size
                weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The fused attention of a GPU, which keeps its inputs, its output and one number a row."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False)[0]


def peak(
    network: str,
    micro: int,
    accumulate: int = 1,
    precision: str = "bf16",
    checkpointing: bool = False,
) -> dict[str, int]:
    """The most bytes that an eager training step of a network at 256 pixels holds, and those of
    the trained state between steps.
    """
    recipe = imagenet(
        "sit",
        model=network,
        batch=micro * accumulate,
        shard=micro,
        accumulate=accumulate,
        precision=precision,
        clip=1.0,
    )
    rows = micro * accumulate
    with (
        device(),
        patch.object(average, "_FUSED", (DEVICE,)),
        patch.object(sit, "attend", flash),
        patch.object(mmdit, "attend", flash),
        Memory() as memory,
    ):
        said = (77, 768) if recipe.model == "mmdit" else ()
        made = Made((4, 32, 32), 0, condition="captions", text_shape=said) if said else PLAIN
        with (
            patch.object(torch.Tensor, "__bool__", lambda self: True),
            patch.object(nn.Module, "to", _move),
        ):
            built = build_imagenet_trainer(recipe, made, device=DEVICE)
        built.objective.model.checkpointing = checkpointing
        y = torch.zeros(rows, *said, dtype=torch.float if said else torch.long, device=DEVICE)
        data = (torch.randn(rows, 4, 32, 32, device=DEVICE), y)
        # AdamW makes its moments in its first step, which would lack them while it computes
        for p in built.parameters:
            p.grad = torch.zeros_like(p)
        built.optimizer.step()
        built.optimizer.zero_grad(set_to_none=True)
        memory.peak = memory.now
        built._train_step(data, last=False)
        gc.collect()
        return {
            "peak": memory.peak,
            "state": memory.now,
            "parameters": sum(p.numel() for p in built.objective.parameters()),
        }


NORM = "the gradient norm"  # as the guard calls it


def spoiled() -> dict[str, Any]:
    """A step whose guard reads the norm, to show that a read is seen."""
    with patch.object(Guard, "watch", lambda self, step, values: values[NORM].item()):
        return step("sit")


def copying() -> dict[str, Any]:
    """A step that moves its learning rate to the device, to show that a copy is seen."""
    with patch.object(
        Guard, "watch", lambda self, step, values: values[NORM] * torch.ones(1).to(DEVICE)
    ):
        return step("sit")


class Hurry(TorchDispatchMode):
    """Counts copies from the device to the host that do not wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "_to_copy":
            back = args[0].device.type == DEVICE and out.device.type == "cpu"
            self.copies += back and bool((kwargs or {}).get("non_blocking"))
        return out


def hurried() -> dict[str, int]:
    """How many copies to the host do not wait where samples are drawn there, and something else is
    on the device: the host would read memory that the device still fills.
    """
    found = {}
    with device():
        x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long, device=DEVICE)
        for name, part in {
            "labels": lambda: guidance._rows(y, x),
            "times": lambda: samplers._grid(torch.zeros(3, device=DEVICE), x),
            "noise": lambda: next(samplers._noises(x, 1, Generator(), None)),
            "signs": lambda: next(samplers._signs(x, 1, Generator())),
            "on purpose": lambda: y.to("cpu", non_blocking=True),
        }.items():
            with Hurry() as watch:
                part()
            found[name] = watch.copies
    return found


def gram_calls(rows: int, columns: int) -> int:
    """How many operators the dispersive loss's Gram matrix takes, forward and backward, of bf16
    features (rows, columns).
    """
    with device(), Watch() as watch:
        z = torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE)
        kernels._gram_product(kernels._gram_forward(z, True), z, True)
    return sum(watch.calls.values())


def elsewhere(*expressions: str) -> list[Any]:
    """The value of each expression in this module, as JSON, from a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fakegpu", *expressions]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    register()
    print(json.dumps([eval(expression) for expression in sys.argv[1:]]))  # noqa: S307 (our own text)
