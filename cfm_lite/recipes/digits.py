"""The 8x8 handwritten digits inside scikit-learn: real data, seconds per method on two cores."""

from cfm_lite.recipes.recipe import Recipe


def digits() -> Recipe:
    """A residual MLP; one channel cannot be shuffled, so VeCoR crops and resizes in the latent (here: pixel) space."""
    return Recipe(dataset="digits", hidden_size=256, depth=4, batch=256, steps=2000, lr=2e-3, cooldown=0.3, ema=0.998)


def digits_sit() -> Recipe:
    """The same with a small SiT: 16 tokens of 2x2 pixels."""
    return digits().changed(model="sit", hidden_size=96, num_heads=4, patch_size=2, lr=1e-3)
