"""The 8x8 handwritten digits inside scikit-learn: real data, some ten seconds per method on two cores."""

from cfm_lite.recipes.recipe import Recipe


def digits() -> Recipe:
    """A residual MLP; one channel cannot be shuffled, so VeCoR crops and resizes in the latent (here: pixel) space.

    1,300 steps are 370 epochs: later the samples come too near to the training images. Shards of 128 cost less than those of 32.
    """
    return Recipe(dataset="digits", hidden_size=256, depth=3, batch=256, shard=128, steps=1300, lr=2e-3, cooldown=0.3, ema=0.997)


def digits_sit() -> Recipe:
    """The same with a small SiT: 16 tokens of 2x2 pixels."""
    return digits().changed(model="sit", hidden_size=96, depth=4, num_heads=4, patch_size=2, lr=1e-3)
