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
    "5.1": """
def negative(sample, transform, path):
    return sample._replace(u_t=path.interpolate(sample.x0, transform(sample.x1), sample.t)[1]).u_t
""",
    "5.2": """
def noise_part(channels):
    others = math.factorial(channels) - 1
    return 2 - 2 * (math.factorial(channels - 1) - 1) / others
""",
    "5.3": """
def gain(weight, channels, k=1):
    total = weight * k
    mean_of_shifts = sum(torch.eye(channels).roll(s, 0) for s in range(1, channels)) / (channels - 1)
    d = torch.eye(channels)[0] - 1 / channels
    return float((d - total * mean_of_shifts @ d)[0] / (1 - total) / d[0])
""",
    "5.4": """
def my_shuffle(u, generator):
    if u.shape[1] < 2:
        raise ValueError("one channel")
    orders = torch.tensor(list(itertools.permutations(range(u.shape[1]))))[1:]
    order = orders[torch.randint(len(orders), (len(u),), generator=generator)]
    return torch.stack([u.flatten(2).take_along_dim(order[..., None], 1)]).reshape(u.shape)
""",
    "5.5": """
def same_optimum(weight, k, new_k):
    if weight * k >= 1:
        return None
    ratio = new_k / k
    return [weight / ratio, 1 / ratio**0.5]
""",
    "7.1": """
def shrink(eta, h, std):
    return ((1 - h) ** 2 * std**2 + h**2 - h * eta) / ((1 - h) ** 2 * std**2 + h**2)
""",
    "7.2": "ours = lambda low, high: tuple(sorted((1 - low, 1 - high)))",
    "7.3": """
def my_cfg(model, y, scale, interval=(0.0, 1.0)):
    return lambda x, t: guidance.cfg(model, y.expand(len(x)), scale, interval=interval)(x, t)
""",
    "7.4": "felt = lambda w, weight: w + w * weight / (1 - weight)",
    "7.5": """
def share(base, control, target):
    far, near = (torch.linalg.vector_norm(x - target, dim=1).sum() for x in (base, control))
    return (far - near) / far
""",
    "3.1": "landing = [0.4, 1.35]",
    "3.2": """
def my_euler(velocity, x, ts):
    states = x[None]
    for k in range(len(ts) - 1):
        v = velocity(states[-1], torch.full((len(x),), float(ts[k]), dtype=x.dtype))
        states = torch.cat([states, (states[-1] + v * (ts[k + 1] - ts[k]))[None]])
    return states


def my_heun(velocity, x, ts):
    states = x[None]
    for k in range(len(ts) - 1):
        t, h = ts[k].repeat(len(x)), ts[k + 1] - ts[k]
        v = velocity(states[-1], t)
        w = velocity(states[-1] + h * v, t + h)
        states = torch.cat([states, (states[-1] + 0.5 * h * v + 0.5 * h * w)[None]])
    return states
""",
    "3.3": """
cloud = mixture.means[torch.arange(500) % 2] * 1.0
""",
    "3.4": """
def forget(t, std):
    return (std**2 / ((t * std) ** 2 + 1 - 2 * t + t**2)).sqrt()
""",
    "3.5": """
def split(few, fine, true):
    return [torch.linalg.vector_norm(p - q, dim=1).mean() for p, q in ((few, fine), (true, fine))]
""",
    "3.6": """
def deficit_at_start(mean, std):
    dims, square = mean.numel(), float(mean @ mean)
    return (1 / (1 + dims * std**2 / (square + dims))) ** 0.5
""",
}
