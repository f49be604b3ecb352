"""MNIST with a small SiT: 49 tokens of 4x4 pixels; an hour or two on two cores, minutes on a GPU (both estimated)."""

from cfm_lite.recipes.recipe import Recipe


def mnist() -> Recipe:
    """SiT of width 192 and depth 6 at batch 128, with bf16 autocast."""
    return Recipe(
        dataset="mnist",
        model="sit",
        hidden_size=192,
        depth=6,
        num_heads=3,
        patch_size=4,
        batch=128,
        steps=6000,
        lr=1e-3,
        warmup=200,
        cooldown=0.2,
        precision="bf16",
    )
