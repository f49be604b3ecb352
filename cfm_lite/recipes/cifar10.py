"""CIFAR-10 in pixels with a SiT of the S/2's width and depth: for a GPU; on a CPU a step takes seconds."""

from cfm_lite.recipes.recipe import Recipe


def cifar10() -> Recipe:
    """256 tokens of 2x2 pixels, batch 128, bf16. VeCoR can shuffle the three colours here.

    `dataset="cifar10-jpeg75"` trains on the JPEG pictures, under their own name.
    """
    return Recipe(
        dataset="cifar10",
        model="sit",
        hidden_size=384,
        depth=12,
        num_heads=6,
        patch_size=2,
        perturb="channel_shuffle",
        block=3,
        align_block=4,
        batch=128,
        steps=100_000,
        lr=2e-4,
        warmup=1000,
        ema=0.9995,
        precision="bf16",
    )
