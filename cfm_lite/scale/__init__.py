"""The full scale: train, sample and evaluate on ImageNet's latents, on one process or many."""
