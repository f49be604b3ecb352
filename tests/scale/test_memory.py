"""The memory that a run is said to need is what its training step holds, counted tensor by tensor at the real sizes."""

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from cfm_lite.models import SiT, sit
from cfm_lite.recipes import imagenet
from cfm_lite.scale.budget import _KEPT, Split, peak_bytes, split_batch, state_bytes
from tests import fakegpu

CASES = [
    ("SiT-S/2", 8, 1, "bf16", False),
    ("SiT-S/2", 32, 2, "bf16", False),
    ("SiT-S/2", 32, 1, "float32", False),
    ("SiT-S/2", 64, 1, "bf16", True),
    ("SiT-B/2", 32, 1, "bf16", True),
    ("SiT-XL/2", 32, 1, "bf16", False),
    ("SiT-XL/2", 32, 1, "bf16", True),
]


@pytest.fixture(scope="module")
def measured():
    return dict(zip(CASES, fakegpu.elsewhere(*[f"peak(*{case!r})" for case in CASES])))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_the_predicted_peak_is_that_of_a_counted_step_within_ten_percent(measured, case):
    name, micro, accumulate, precision, checkpointing = case
    recipe = imagenet("sit", model=name, precision=precision)
    found = measured[case]
    predicted = peak_bytes(recipe, 32, found["parameters"], Split(1, accumulate, micro), checkpointing=checkpointing)
    assert predicted == pytest.approx(found["peak"], rel=0.1)
    assert state_bytes(found["parameters"]) == pytest.approx(found["state"], rel=0.01)


class Kept:
    """A compiler that only notes how many bytes the forward pass leaves for the backward pass, less copies of weights."""

    def __init__(self, rows: tuple[int, int]) -> None:
        self.rows, self.bytes = rows, 0  # a batch's tensors begin with its images or with its tokens

    def __call__(self, graph, inputs):
        compiler = {"fw_compiler": self.plain, "bw_compiler": self.plain, "partition_fn": self.partition}
        return aot_autograd(**compiler, decompositions=select_decomp_table())(graph, inputs)

    @staticmethod
    def plain(graph, inputs):
        return make_boxed_func(graph.forward)

    def partition(self, joint, inputs, *, num_fwd_outputs, **how):
        forward, backward = min_cut_rematerialization_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **how)
        (outputs,) = (node.args[0] for node in forward.graph.nodes if node.op == "output")
        # attention's output is listed twice: as it is (an alias), and with its heads side by side
        nodes = [node for node in outputs[num_fwd_outputs:] if node.op != "placeholder" and "alias" not in str(node.target)]
        tensors = [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        self.bytes = sum(z.nbytes for z in tensors if len(z) in self.rows)
        return forward, backward


def kept_by_a_compiled_model(depth, precision, width=128, batch=2):
    torch._dynamo.reset()
    model, kept = SiT(hidden_size=width, depth=depth, num_heads=2, num_classes=10), Kept((batch, 256 * batch))
    x, t, y = torch.randn(batch, 4, 32, 32), torch.rand(batch), torch.zeros(batch, dtype=torch.long)
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False), torch.autocast("cpu", enabled=precision == "bf16"):
        torch.compile(model, backend=kept, dynamic=False)(x, t, y)
    return kept.bytes / (256 * batch * width)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_block_keeps_what_the_budget_says_within_five_percent(monkeypatch, precision):
    monkeypatch.setattr(sit, "attend", F.scaled_dot_product_attention)  # the CPU has another form in half precision, for speed
    block = kept_by_a_compiled_model(3, precision) - kept_by_a_compiled_model(2, precision)
    assert _KEPT[precision, True] == pytest.approx(block, rel=0.05)


def test_sit_xl_trains_on_80_gb_without_checkpointing_and_on_24_gb_with_it():
    recipe, parameters, gb = imagenet("sit"), 675_111_184, 10**9
    for compile in (False, True):
        assert split_batch(recipe, 32, parameters, 80 * gb, compile=compile).micro >= 64
        assert peak_bytes(recipe, 32, parameters, Split(1, 8, 32), compile=compile, checkpointing=True) < 0.8 * 24 * gb
    assert peak_bytes(recipe, 32, parameters, Split(1, 8, 32)) > 24 * gb
