"""The parts of `make bench-gpu`: generators of rows with their goals, each of which can fail
alone.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cfm_lite import guidance, objective, runs, samplers
from cfm_lite.engine.optimizers import clip_gradients
from cfm_lite.models import SiT, count_parameters
from cfm_lite.objective import Alignment, Objective
from cfm_lite.runs.imagenet import MODELS, ImageNet, imagenet
from cfm_lite.runs.throughput import train_flops
from cfm_lite.scale.budget import Split, peak_bytes, split_batch
from tools.benchmarks.gpu import sides
from tools.benchmarks.gpu.clock import held, interleaved, measured, without_syncs
from tools.benchmarks.gpu.plan import Bench
from tools.benchmarks.harness import CannotRun, NotRun, Row, faster, takes

__all__ = ["Part", "parts_of"]

Part = Callable[[Bench], Iterator[Row | NotRun]]


def parts_of(bench: Bench) -> dict[str, tuple[float, Part]]:
    """Name -> (seconds of the ten minutes, part), the most important first."""
    others = [name for name in bench.plan.networks if name != bench.plan.main]
    short = {
        name: name.removeprefix("SiT-").replace("/", "").lower() for name in bench.plan.networks
    }
    return {
        "ceiling": (20, ceiling),
        f"train_{short[bench.plan.main]}": (
            85,
            functools.partial(throughput, name=bench.plan.main),
        ),
        "update": (20, update),
        "official": (90, against_official),
        "regularisers": (90, regularisers),
        "syncs": (20, syncs),
        "sampling": (70, sampling),
        "memory": (30, memory),
        "memory_checkpointing": (30, memory_checkpointing),
        **{
            f"train_{short[name]}": (35, functools.partial(throughput, name=name))
            for name in others
        },
        "attention": (10, attention),
        "whole_graph": (60, whole_graph),
    }


def ceiling(bench: Bench) -> Iterator[Row]:
    """The limits of this device: the rate of large bf16 products, and the bandwidth of a copy."""
    for n in bench.plan.squares:
        a, b, out = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(3))
        times = interleaved(bench, {"product": functools.partial(torch.mm, a, b, out=out)})
        rate = 2 * n**3 / times.medians("product")["product"]
        bench.ceiling = max(rate, bench.ceiling or 0.0)
        yield measured(f"bf16 product, {n} x {n}", rate / 1e12, " TFLOP/s", times=times)
    source, target = (torch.randn(bench.plan.copied, device=bench.device) for _ in range(2))
    times = interleaved(bench, {"copy": lambda: target.copy_(source)})
    bench.bandwidth = 2 * source.nbytes / times.medians("copy")["copy"]
    yield measured("bandwidth of a copy", bench.bandwidth / 1e12, " TB/s", times=times)


def throughput(bench: Bench, name: str) -> Iterator[Row]:
    """A whole training step: draws, forward, backward, clip, AdamW, average, guard, log."""
    rows, micro = bench.plan.batch, bench.plan.networks[name].micro
    model = sides.compiled(bench, sides.network(bench, name))
    built = sides.trainer(objective.fm(model, shard=bench.plan.shard), rows, micro)
    side = sides.stepping(built, sides.batches(bench, rows))
    yield from _rates(
        bench,
        model,
        f"{name}, batch {rows}",
        rows,
        side,
        bench.plan.networks[name].goal,
        f"micro-batch {micro}",
    )
    if name == bench.plan.main:
        local = bench.plan.local
        built = sides.trainer(objective.fm(model, shard=local), local, local)
        side = sides.stepping(built, sides.batches(bench, local))
        yield from _rates(
            bench, model, f"{name}, batch {local}", local, side, 35, "the batch of one GPU of eight"
        )


def _rates(
    bench: Bench, model: Any, name: str, rows: int, side: Callable[[], Any], goal: float, note: str
) -> Iterator[Row]:
    times = interleaved(bench, {"step": side})
    rate = rows / times.medians("step")["step"]
    peak = runs.peak_memory(bench.device) / 1e9
    yield measured(
        f"{name}: images/s",
        rate,
        " images/s",
        times=times,
        note=f"{note}; peak memory {peak:.1f} GB so far",
    )
    if bench.ceiling is None:
        raise CannotRun("the ceiling was not measured, so there is no share of it")
    share = 100 * rate * train_flops(model) / bench.ceiling
    flops, ceiling = train_flops(model) / 1e12, bench.ceiling / 1e12
    note = f"{flops:.4g} TFLOP an image, ceiling {ceiling:.4g} TFLOP/s"
    yield measured(f"{name}: share of the ceiling", share, " %", goal=goal, times=times, note=note)


def whole_graph(bench: Bench) -> Iterator[Row]:
    """The smallest network compiled as one graph with its losses, which no run does, beside its
    blocks compiled, as every run does.
    """
    name, rows = list(bench.plan.networks)[-1], bench.plan.batch
    made = {}
    for how in ("blocks", "whole"):
        model = sides.network(bench, name)
        chosen = objective.fm(
            sides.compiled(bench, model) if how == "blocks" else model, shard=bench.plan.shard
        )
        built = sides.trainer(chosen, rows, bench.plan.networks[name].micro)
        if how == "whole" and bench.compiles:
            built._forward = torch.compile(
                built._wrapped, dynamic=False, backend=bench.plan.backend
            )
        made[how] = sides.stepping(built, sides.batches(bench, rows))
    since = time.perf_counter()
    made["whole"]()
    first = time.perf_counter() - since
    note = f"batch {rows}; the first step took {first:.0f} s with its compilation"
    yield faster(
        f"{name}, one compiled graph: over compiled blocks",
        interleaved(bench, made),
        "whole",
        "blocks",
        note=note,
    )


def update(bench: Bench) -> Iterator[Row]:
    """AdamW and the average together, alone and after the library's clipping."""
    built = sides.trainer(
        objective.fm(sides.network(bench, bench.plan.main)), bench.plan.local, bench.plan.local
    )
    for p in built.parameters:
        p.grad = torch.randn_like(p)

    def clipped() -> None:
        clip_gradients(built.parameters, 1.0)
        built._update()

    times = interleaved(bench, {"update": built._update, "with clip": clipped})
    middle, numbers = times.medians("update", "with clip"), count_parameters(built.objective)[0]
    floor = None if bench.bandwidth is None else 1e3 * 40 * numbers / bench.bandwidth
    note = f"{numbers:,} parameters; floor: 40 bytes each at the bandwidth of a copy"
    yield measured(
        "AdamW and average", 1e3 * middle["update"], " ms", "<=", 11, times, floor=floor, note=note
    )
    yield measured(
        "AdamW and average with clip", 1e3 * middle["with clip"], " ms", "<=", 15, times, note=note
    )


def against_official(bench: Bench) -> Iterator[Row]:
    """The same weights and batches on both sides; theirs in TF32, and again under bf16 autocast."""
    name, rows = bench.plan.main, bench.plan.batch
    model = sides.network(bench, name, learn_sigma=True)
    other, loss, source = sides.official(bench, model, name)
    theirs = sides.OfficialStep(
        other, loss, max(bench.plan.shard, bench.plan.networks[name].micro // 2)
    )
    built = sides.trainer(
        objective.fm(sides.compiled(bench, model), shard=bench.plan.shard),
        rows,
        bench.plan.networks[name].micro,
    )
    data = sides.batches(bench, rows)

    def in_tf32(half: bool) -> None:
        with tf32():
            theirs(*data[0], half=half)

    both = {
        "ours": sides.stepping(built, data),
        "official": lambda: in_tf32(False),
        "official, bf16": lambda: in_tf32(True),
    }
    times = interleaved(bench, both, warmup=bench.plan.few, rounds=bench.plan.few)
    middle, least = times.medians(*both), times.minima(*both)
    note = f"{source}; batch {rows}, {times.repeats} steps a side, in turn, after {bench.plan.few}"
    for side, goal in (("official", 2.5), ("official, bf16", 1.5)):
        ratio, by_minima = middle[side] / middle["ours"], least[side] / least["ours"]
        yield Row(
            f"{name}: over the {side} step",
            ratio,
            by_minima,
            ">=",
            goal,
            None,
            "x",
            middle,
            least,
            times.repeats,
            note,
        )


@contextmanager
def tf32() -> Iterator[None]:
    """The official program's two lines."""
    flags: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = True
    try:
        yield
    finally:
        for flag, old in zip(flags, before):
            flag.allow_tf32 = old


def objectives(bench: Bench, model: Any) -> dict[str, Objective]:
    """One objective of each method on the same model."""
    shared: dict[str, Any] = {"shard": bench.plan.shard}
    return {
        "fm": objective.fm(model, **shared),
        "delta_fm": objective.delta_fm(model, **shared),
        "vecor": objective.vecor(model, **shared),
        "dispersive": objective.dispersive(model, **shared),
        "repa": objective.fm(model, **shared).plus(_alignment(bench, model)).to(bench.device),
    }


def _alignment(bench: Bench, model: Any) -> Alignment:
    plan = bench.plan
    return Alignment(
        0.5, min(8, model.depth), model.hidden_size, _Features(), plan.teacher, width=plan.projector
    )


class _Features:
    """A teacher whose features were computed before: they come as the context, and go through."""

    def __call__(self, features: Tensor) -> Tensor:
        return features


def regularisers(bench: Bench) -> Iterator[Row]:
    """Each method's step beside plain flow matching's, on one model with one optimizer and one
    average.
    """
    name, rows = bench.plan.main, bench.plan.batch
    model = sides.compiled(bench, sides.network(bench, name))
    every = objectives(bench, model)
    # its optimizer knows the projector too
    built = sides.trainer(every["repa"], rows, bench.plan.networks[name].micro)
    step = sides.stepping(
        built, sides.batches(bench, rows, (bench.plan.tokens, bench.plan.teacher), kept=2)
    )

    def by(method: str) -> None:
        sides.select(built, every[method])
        step()

    times = interleaved(
        bench,
        {method: functools.partial(by, method) for method in every},
        warmup=bench.plan.few,
        rounds=bench.plan.few + 1,
    )
    for method, goal in (
        ("delta_fm", 1.005),
        ("vecor", 1.005),
        ("dispersive", 1.005),
        ("repa", 1.03),
    ):
        given = ", features given" if method == "repa" else ""
        note = f"batch {rows}, shards of {bench.plan.shard}{given}"
        yield takes(
            f"{name}, {method}: over plain flow matching", times, method, "fm", goal, note=note
        )


def syncs(bench: Bench) -> Iterator[Row | NotRun]:
    """Steps that are not logged, each host read an error."""
    rows, micro = bench.plan.batch, bench.plan.networks[bench.plan.main].micro
    model = sides.compiled(bench, sides.network(bench, bench.plan.main))
    every = objectives(bench, model)
    built = sides.trainer(every["repa"], rows, micro, log_every=10**6)
    data = sides.batches(bench, rows, (bench.plan.tokens, bench.plan.teacher), kept=1)
    for method, chosen in every.items():
        sides.select(built, chosen)
        step = sides.stepping(built, data)  # anew, for an error ends it
        step(), step()
        name = f"{method}: host waits in three steps that are not logged"
        try:
            with without_syncs(bench):
                step(), step(), step()
            yield measured(
                name, 0, "", "<=", 0, note="" if bench.on_gpu else "nothing is checked on a CPU"
            )
        except RuntimeError as error:
            yield measured(name, 1, "", "<=", 0, note=str(error).splitlines()[0])


def sampling(bench: Bench) -> Iterator[Row]:
    """Euler steps with guidance in an interval, against the bare forward passes that they consist
    of.
    """
    plan, n = bench.plan, bench.plan.drawn
    model = sides.compiled(bench, sides.network(bench, plan.main)).eval()
    x, y, t = (
        torch.randn(n, 4, plan.side, plan.side, device=bench.device),
        torch.arange(n, device=bench.device) % plan.classes,
        0.5,
    )
    seen: Counter[int] = Counter()
    model.register_forward_pre_hook(lambda _, inputs: seen.update([len(inputs[0])]))
    velocity, ts = guidance.cfg(model, y, 1.5, (0.25, 0.75)), torch.linspace(0, 1, plan.steps + 1)

    def bare(copies: int) -> Callable[[], Any]:
        given = (
            torch.cat([x] * copies),
            torch.full((n * copies,), t, device=bench.device),
            torch.cat([y] * copies),
        )
        return lambda: model(*given)

    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
        samplers.sample(velocity, x, torch.linspace(0, 1, 9), samplers.euler)
        passes = interleaved(bench, {"one": bare(1), "two": bare(2)}, warmup=bench.plan.few)
        seen.clear()
        whole = interleaved(
            bench,
            {"sample": lambda: samplers.sample(velocity, x, ts, samplers.euler)},
            warmup=0,
            rounds=2,
            block=1,
        )
    calls = sum(seen.values()) / plan.steps
    single, double = passes.medians("one", "two").values()
    ideal = (seen[n] * single + seen[2 * n] * double) / calls
    took = whole.medians("sample")["sample"]
    once, twice = seen[n] / calls, seen[2 * n] / calls
    note = f"{n} images, guidance 1.5 from t = 0.25 to 0.75: "
    note += f"{once:g} calls on {n} rows, {twice:g} on {2 * n}"
    yield measured(
        f"{plan.main}, {plan.steps} steps: images/s", n / took, " images/s", times=whole, note=note
    )
    name = f"{plan.main}, {plan.steps} steps: of the bare forward rate"
    yield measured(name, 100 * ideal / took, " %", goal=90, times=passes, note=note)


def memory(bench: Bench) -> Iterator[Row]:
    """The peak of a step without checkpointing, compiled and eager, and what the budget says."""
    rows = 2 * bench.plan.networks[bench.plan.main].micro
    split = Split(1, 2, rows // 2)
    for compile in (True, False):
        yield from _peaks(bench, _recipe(bench, rows), split, compile, False, 80.0)


def memory_checkpointing(bench: Bench) -> Iterator[Row]:
    """The same on a small card with checkpointing: torch may not take more than that card has."""
    settings: dict[str, Any] = {
        "input_size": bench.plan.side,
        "num_classes": bench.plan.classes,
        **MODELS[bench.plan.main],
    }
    with torch.device("meta"):
        parameters = count_parameters(SiT(**settings))[0]
    recipe = _recipe(bench, bench.plan.batch)
    split = split_batch(
        recipe, bench.plan.side, parameters, int(bench.plan.card), checkpointing=True
    )
    if not bench.on_gpu:
        yield from _peaks(bench, recipe, split, False, True, bench.plan.card / 1e9)
        return
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, bench.plan.card / total), bench.device)
    try:
        yield from _peaks(bench, recipe, split, False, True, bench.plan.card / 1e9)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def _recipe(bench: Bench, rows: int) -> ImageNet:
    return imagenet(
        "sit", model=bench.plan.main, batch=rows, shard=bench.plan.shard, precision="bf16"
    )


def _peaks(
    bench: Bench, recipe: ImageNet, split: Split, compile: bool, checkpointing: bool, card: float
) -> Iterator[Row]:
    before = held(bench)
    model = sides.network(bench, bench.plan.main)
    model.checkpointing = checkpointing
    model = sides.compiled(bench, model) if compile else model
    built = sides.trainer(
        objective.fm(model, shard=recipe.shard), split.accumulate * split.micro, split.micro
    )
    step = sides.stepping(built, sides.batches(bench, split.accumulate * split.micro, kept=1))
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    step(), step(), step()
    peak, parameters = runs.peak_memory(bench.device) - before, count_parameters(built.objective)[0]
    predicted = peak_bytes(
        recipe, bench.plan.side, parameters, split, compile=compile, checkpointing=checkpointing
    )
    how = "compiled" if compile else "eager"
    how += f"{', checkpointing' if checkpointing else ''}, micro-batch {split.micro}"
    note = f"predicted {predicted / 1e9:.2f} GB" + (
        "" if bench.on_gpu else "; on a CPU the process is measured, not its tensors"
    )
    yield measured(
        f"{bench.plan.main}, {how}: peak memory", peak / 1e9, " GB", "<=", card, note=note
    )
    gap = 100 * abs(predicted / peak - 1)
    yield measured(
        f"{bench.plan.main}, {how}: prediction off by",
        gap,
        " %",
        "<=",
        10 if bench.on_gpu else None,
        note=note,
    )


def attention(bench: Bench) -> Iterator[Row | NotRun]:
    """Forward and backward of each of torch's attention kernels at the shape of the main network,
    for whoever tunes it.
    """
    sizes: Mapping[str, int] = MODELS[bench.plan.main]
    heads = sizes["num_heads"]
    shape = (
        bench.plan.networks[bench.plan.main].micro,
        heads,
        bench.plan.tokens,
        sizes["hidden_size"] // heads,
    )
    q, k, v = (
        torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    attended = nn.functional.scaled_dot_product_attention
    for kernel in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    ):
        name = f"attention {shape} by {kernel.name.split('_')[0].lower()}"
        try:
            with sdpa_kernel(kernel):
                times = interleaved(
                    bench, {"attention": lambda: attended(q, k, v).sum().backward()}
                )
        except RuntimeError as error:
            yield NotRun(name, str(error).splitlines()[0])
            continue
        yield measured(
            name, 1e3 * times.medians("attention")["attention"], " ms", "<=", times=times
        )
