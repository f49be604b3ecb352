"""Two dimensions: four Gaussians in two classes, whose exact field is known; a minute on a laptop."""

from cfm_lite.recipes.recipe import Recipe


def toy() -> Recipe:
    """An MLP on the two-class mixture; VeCoR shuffles the coordinates, the only perturbation that means something on points."""
    return Recipe(
        dataset="two_classes",
        hidden_size=128,
        depth=3,
        perturb="channel_shuffle",
        batch=512,
        shard=512,
        steps=2000,
        cooldown=0.2,
        ema=0.995,
    )
