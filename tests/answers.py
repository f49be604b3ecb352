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
    "2.1": "squared, absolute = sum([0, 0, 0, 4]) / 4, 0",
    "2.2": """
def normal_floor(s):
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    return (s**2 / (t**2 * s**2 + (1 - t) ** 2)).mean()
""",
    "2.3": """
import copy


def my_loop(model, x1, steps, seed):
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    shadow = copy.deepcopy(model)
    history = []
    for k in range(steps):
        t = torch.rand(256, 1, generator=g)
        x0 = torch.randn(256, 2, generator=g)
        data = x1[torch.randint(len(x1), (256,), generator=g)]
        v = model(torch.lerp(x0, data, t), t[:, 0])
        loss = torch.nn.functional.mse_loss(v, data - x0)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        d = min(0.99, (1 + k) / (10 + k))
        for name, value in model.state_dict().items():
            shadow.state_dict()[name].mul_(d).add_((1 - d) * value)
    return shadow, history
""",
    "2.4": """
def lengths_of(s):
    return torch.tensor([s * s + 1, s * s - 2 * s + 1])
""",
    "2.5": """
def ot_per_class(x0, x1, y):
    order = torch.cat([(y == c).nonzero()[:, 0] for c in y.unique()])
    parts = [draws.minibatch_ot(x0[y == c], x1[y == c])[0] for c in y.unique()]
    paired = torch.empty_like(x0)
    paired[order] = torch.cat(parts)
    return paired, x1, y
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
    "4.1": "best = lambda u, u_neg, weight: u + weight / (1 - weight) * (u - u_neg)",
    "4.2": """
def lowest(u, u_neg, place, weight):
    total = 0.0
    for p in place.unique():
        a, b = u[place == p], u_neg[place == p]
        f = a.mean(0) + weight / (1 - weight) * (a.mean(0) - b.mean(0))
        total = total + ((a - f) ** 2).sum() - weight * ((b - f) ** 2).sum()
    return total / u.numel()
""",
    "4.3": """
def my_loss(model, x1, y, weight, generator):
    x0 = torch.randn(x1.shape, generator=generator).to(x1)
    t = torch.rand(len(x1), generator=generator).to(x1)
    x_t, u = LINEAR.interpolate(x0, x1, t)
    other = torch.randint(len(x1) - 1, (len(x1),), generator=generator)
    other = other + (other >= torch.arange(len(x1)))
    v = model(x_t, t, y)
    terms = {"attract": losses.flow_matching(v, u), "repel": losses.repulsion(v, u[other])}
    return terms["attract"] - weight * terms["repel"], terms
""",
    "4.4": """
def factor(weight):
    middle = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    whole = (middle**2 + (1 - middle) ** 2).pow(-0.5 / (1 - weight)).mean().item()
    return 1 + weight / (1 - weight) * whole
""",
    "4.5": "mean_negatives = torch.stack([two.mean(torch.tensor([1]))[0], two.mean(torch.tensor([0]))[0]])",
    "4.6": "undo = lambda v, mean, weight: v - weight * (v - mean)",
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
    "6.1": "tau_without = torch.tensor(98304.0)",
    "6.2": "h_best = torch.eye(4) - torch.eye(4).mean(0)",
    "6.3": """
def lowest(d, B):
    rank = d if d < B else B - 1
    return d * (d / rank - 1)
""",
    "6.4": 'chosen = ["fc2", "label_table", "input", "time_2"]',
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
    "8.1": """
def my_frechet(a, b):
    if min(len(a), len(b)) < 2:
        raise ValueError("two rows are needed")
    a, b = a.double(), b.double()
    s1, s2 = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.eigvals(s1 @ s2).real.clamp(min=0).sqrt()
    return float((a.mean(0) - b.mean(0)) @ (a.mean(0) - b.mean(0)) + (s1 + s2).trace() - 2 * roots.sum())
""",
    "8.2": 'answer = "Nearest ratio"',
    "8.3": "prediction = [2, 50]",
    "8.4": """
def flip_p(d):
    n, far = len(d), 0
    for k in range(2**n):
        signs = torch.tensor([1.0 if k >> i & 1 else -1.0 for i in range(n)], dtype=torch.float64)
        far += abs(float((signs * d.double()).mean())) >= abs(float(d.double().mean())) - 1e-9
    return far / 2**n
""",
    "8.5": """
def verdict(d, lower_is_better):
    if not (d.low * d.high > 0 and d.t_low * d.t_high > 0 and d.low * d.t_low > 0):
        return "no clear difference"
    return "better" if (d.mean < 0) == lower_is_better else "worse"
""",
    "9.1": """
def cut_up(x, p):
    if x.shape[2] % p or x.shape[3] % p:
        raise ValueError("p does not divide the sides")
    return F.unfold(x, p, stride=p).mT


def paste(tokens, side, p, channels):
    pieces = tokens.unflatten(-1, (p * p, channels)).mT.flatten(-2)  # channel first
    return F.fold(pieces.mT, (side * p, side * p), p, stride=p)
""",
    "9.2": """
def likeness(down, right, D):
    here, there = torch.tensor([20.0 + down, 20.0 + right]), torch.tensor([20.0, 20.0])
    a, b = (torch.cat([waves(position[1:], D // 2), waves(position[:1], D // 2)], 1)[0] for position in (here, there))
    return float(F.cosine_similarity(a, b, dim=0))
""",
    "9.3": """
def my_block(block, x, c, heads):
    b1, s1, g1, b2, s2, g2 = (part[:, None] for part in block.adaLN_modulation(c).chunk(6, dim=1))
    z = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + s1) + b1
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in block.attn.qkv(z).chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v)
    x = x + g1 * block.attn.proj(mixed.transpose(1, 2).flatten(2))
    z = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + s2) + b2
    return x + g2 * block.mlp.fc2(F.gelu(block.mlp.fc1(z), approximate="tanh"))
""",
    "9.4": "predicted = 1 + float((data.x1**2).mean())",
    "10.1": "steps_per_update = lambda batch, gpus, micro: batch / gpus / micro",
    "10.2": "gigabytes = lambda parameters: 20e-9 * parameters",
    "10.3": "days = lambda steps, batch, images_per_second: steps / (images_per_second / batch) / (24 * 3600)",
    "10.4": """
from dataclasses import dataclass


@dataclass
class MyTerm:
    weight: float
    name: str = "short"
    sign: float = 1.0
    blocks: tuple = ()

    def prepare(self, draw):
        return None

    def __call__(self, batch):
        return batch.v.square().mean()


rows = []
for seed in range(5):
    plain = guidance.conditional(train_small((), seed, 3), 0)
    fields = {"fm": plain, "fm_scaled": guidance.rescale(plain, 1 / 0.95)}
    fields["mine"] = guidance.conditional(train_small([MyTerm(0.05)], seed, 3), 0)
    for method, field in fields.items():
        value = distance(field, seed)
        rows.append({"method": method, "seed": seed, "nfe": 32, "metric": "distance", "value": value})
""",
    "11.1": "without = lambda y, rows: torch.where(rows[:, None], torch.zeros_like(y), y)",
    "11.2": """
def mixed(q_s, k_s, v_s, q_h, k_h, v_h):
    keys, values = torch.cat([k_s, k_h], 2), torch.cat([v_s, v_h], 2)
    return [(q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1) @ values for q in (q_s, q_h)]
""",
    "11.3": "guided_away = lambda v, v_neg, scale: torch.lerp(v_neg, v, scale)",
    "11.4": "trained_scale = lambda weight: (1 - 2 * weight) ** -1",
}
