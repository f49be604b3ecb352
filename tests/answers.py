"""Another right answer to every exercise of the course: unlike the notebook's own solution in form.

Each is the code of a whole solution cell. `tests/test_exercises.py` puts it in the place of the
solution.
"""

ANSWERS: dict[str, str] = {
    "0.1": "place, speed = torch.tensor([1, 1]), (-4.0, 4.0)",
    "0.2": "to_ours = lambda theirs, x, t: theirs(x, 1 - t).neg()",
    "0.3": "speed_up = lambda weight: 1 + weight / (1 - weight)",
    "1.1": """
slow_start = Path("mine", torch.square, lambda t: (1 - t) * (1 + t), lambda t: t + t, lambda t: -t - t)
""",
    "1.2": "at_start, at_end = (lambda x, mean: -(x - mean)), (lambda x, mean: x.clone())",
    "1.3": "border = -0.5244",
    "1.4": """
def score_from(x, v, t):
    data_guess = x + (1 - t) * v
    return (t * data_guess - x) / (1 - t) ** 2
""",
}
