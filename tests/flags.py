"""Every option of every command: a command line that it changes, and those in which it could do
nothing and is refused.

Read by test_flags.py (small runs) and scale/test_flags.py (imagenet). A test holds the tables
against the dataclasses, so that a new option has to be entered. The names of files are those that
`home` in test_flags.py makes.
"""

import dataclasses

from cfm_lite import cli
from cfm_lite.cli.train import Training

KINDS = {
    "demo": cli.Demo,
    "train": cli.Train,
    "sample": cli.Sample,
    "evaluate": cli.Evaluate,
    "compare": cli.Compare,
    "prepare": cli.Prepare,
    "export": cli.Export,
    "scale prepare": cli.ScalePrepare,
    "scale train": cli.ScaleTrain,
    "scale sample": cli.ScaleSample,
}
# options that two commands share, and that are tried with the first of them
SHARED = {
    **{("scale sample", f.name): ("sample", f.name) for f in dataclasses.fields(cli.Sample)},
    **{("scale train", f.name): ("train", f.name) for f in dataclasses.fields(Training)},
}


def options():
    """(command, name) of every option."""
    for command, kind in KINDS.items():
        yield from ((command, field.name) for field in dataclasses.fields(kind))


def command_of(line):
    """The command that a line starts with: one word, or scale and a second one."""
    words = line.split()
    return " ".join(words[: 2 if words[0] == "scale" else 1])


_TOY = "train toy --steps 2 --set hidden_size=8 batch=16"
_SAMPLE = "sample --checkpoint run --num 4 --steps 2"
_GUIDED = f"{_SAMPLE} --guidance 2"
_DELTA = "sample --checkpoint delta --num 4 --steps 2"
_LIST = "compare toy --quick --list"

# (command, option): the command line without it, and what is put behind it; the two leave something
# else
ACTS = {
    ("demo", "seed"): ("demo --quick", "--seed 1"),
    ("demo", "quick"): ("demo", "--quick"),
    ("demo", "out"): ("demo --quick", "--out other"),
    ("train", "recipe"): (
        "train digits --steps 2 --set hidden_size=8",
        "train digits_sit --steps 2 --set hidden_size=8",
    ),
    ("train", "seed"): (_TOY, "--seed 1"),
    ("train", "quick"): (
        "train toy --set steps=1 hidden_size=8",
        "train toy --set hidden_size=8 --quick",
    ),
    ("train", "method"): (_TOY, "--method delta_fm"),
    ("train", "steps"): (_TOY, "train toy --steps 3 --set hidden_size=8 batch=16"),
    ("train", "set"): (_TOY, "train toy --steps 2 --set hidden_size=8 batch=16 lr=0.5"),
    ("train", "out"): (_TOY, "--out other"),
    ("train", "resume"): (
        "train toy --out run --steps 3 --set hidden_size=8 batch=32 shard=32",
        "--resume",
    ),
    ("train", "save_every"): (_TOY, "--save-every 1"),
    ("train", "batch"): ("train toy --steps 2 --set hidden_size=8", "--batch 20"),
    ("train", "compile"): (_TOY, "--compile"),
    ("sample", "checkpoint"): (_SAMPLE, "sample --checkpoint delta --num 4 --steps 2"),
    ("sample", "seed"): (_SAMPLE, "--seed 1"),
    ("sample", "quick"): ("sample --checkpoint run --steps 2", "--quick"),
    ("sample", "num"): (_SAMPLE, "sample --checkpoint run --num 5 --steps 2"),
    ("sample", "labels"): (_SAMPLE, "--labels 1"),
    ("sample", "steps"): (_SAMPLE, "sample --checkpoint run --num 4 --steps 3"),
    ("sample", "solver"): (_SAMPLE, "--solver heun"),
    ("sample", "guidance"): (_SAMPLE, "--guidance 2"),
    ("sample", "interval"): (_GUIDED, "--interval 0.4 0.6"),
    ("sample", "debias"): (_DELTA, "--debias"),
    ("train", "sample_every"): (_TOY, "--sample-every 1"),
    ("sample", "average"): (_SAMPLE, "--average model"),
    ("sample", "out"): (_SAMPLE, "--out other.npz"),
    ("evaluate", "samples"): (
        "evaluate --samples run/samples.npz",
        "evaluate --samples delta/samples.npz",
    ),
    ("evaluate", "out"): ("evaluate --samples run/samples.npz", "--out other.json"),
    ("compare", "suite"): (_LIST, "compare digits --quick --list --set hidden_size=8"),
    ("compare", "seed"): (_LIST, "--seed 3"),
    ("compare", "quick"): (
        "compare toy --list --set hidden_size=8",
        "compare toy --quick --list --set hidden_size=8",
    ),
    ("compare", "group"): (_LIST, "--group weight"),
    ("compare", "seeds"): (_LIST, "--seeds 1"),
    ("compare", "arms"): (_LIST, "--arms fm"),
    ("compare", "workers"): (_LIST, "--workers 7"),
    ("compare", "set"): (_LIST, "--set hidden_size=8"),
    ("compare", "out"): ("compare toy --report", "--out results"),
    ("compare", "list"): ("compare toy --quick", "--list"),
    ("compare", "report"): (
        "compare toy --quick --list --out results",
        "compare toy --report --out results",
    ),
    ("prepare", "dataset"): ("prepare digits", "prepare cifar10"),
    ("sample", "prompt"): ("sample --checkpoint words --num 2 --steps 2", "--prompt red7"),
    ("sample", "negative"): ("sample --checkpoint words --num 2 --steps 2", "--negative red7"),
}

_VALUES = {
    "latents": "L", "model": "SiT-S/2", "size": "64", "log": "tensorboard", "log_every": "1", "price": "2", "micro_batch": "8",
    "parallel": "fsdp", "images": "L", "features": "L", "start": "file", "format": "repa", "teacher": "random", "ranks": "2",
    "interval": "0.2 0.8", "batch": "3", "vae": "tiny", "rows": "9", "workers": "2", "mirrors": "2", "out": "O",
    "captions": "file", "text": "file",
}  # fmt: skip
_FULL = {f.name for f in dataclasses.fields(cli.ScaleTrain)} - {
    f.name for f in dataclasses.fields(cli.Train)
}
_SWITCHES = ("dry_run", "compile", "no_compile", "checkpointing")
_TI = "scale train --model SiT-Ti/2 --dry-run"


def flag(name):
    """The words of an option with a value that it may have."""
    return f"--{name.replace('_', '-')}" + ("" if name in _SWITCHES else f" {_VALUES[name]}")


# (command line, what its one line of error says)
REFUSED = [
    *((f"train toy {flag(name)}", f"--{name.replace('_', '-')}. cfm-lite scale train has it") for name in sorted(_FULL)),
    ("train imagenet --model SiT-XL/2 --latents L", "now: cfm-lite scale train --model SiT-XL/2 --latents L"),
    ("prepare imagenet --out new", "now: cfm-lite scale prepare --out new"),
    ("train toy --quick --steps 3", "both say how many steps"),
    ("train toy --compile --no-compile", "are both given"),
    ("train toy --quick --set steps=3", "--set steps and --quick"),
    ("train toy --steps 2 --set steps=3", "--set steps and --steps"),
    ("train toy --batch 8 --set batch=16", "--set batch and --batch"),
    ("train toy --seed 0 --set seed=1", "--set seed and --seed"),
    ("train toy --method fm --set method=vecor", "--set method and --method"),
    ("train toy --set tau=0.1", "it is read only by dispersive and contrastive"),
    ("train toy --set weight=0.1", "it is read only by delta_fm, vecor, vecor_latent, vecor_image and contrast_by_condition"),
    ("train toy --set k=2 --method delta_fm", "--set k would change nothing"),
    ("train toy --set perturb=channel_shuffle", "--set perturb would change nothing"),
    ("train toy --set views=restricted --method dispersive", "it is read only by contrastive"),
    ("train toy --set align=0.3", "it is read only by repa"),
    ("train toy --set batch=1000000000000", "batch is 1000000000000; its data and noise"),
    ("train toy --method dispersive --set variant=covariance", "usual spread is 3e-05"),
    ("train toy --set boost_power=2", "boost is 0"),
    ("train toy --set coupling=minibatch_ot shard=1", "set shard and batch to 2 or more"),
    ("sample --checkpoint run --prompt red7", "is for a run on captions"),
    ("sample --checkpoint run --negative red7", "is for a run on captions"),
    ("sample --negative red7 --out new.npz", "--negative is for pictures of captions; give --prompt TEXT too"),
    ("scale sample --captions file --out new.npz", "reads; give its folder with --checkpoint RUN"),
    ("scale sample --checkpoint words --captions said.tsv --num 1", "reads, and words is a run on words; leave it out"),
    ("scale prepare --images nowhere --captions said.tsv --out new --vae tiny", "no tar archive. Give a folder of images."),
    ("sample --checkpoint run --guidance nan", "guidance is nan; it must be a finite number."),
    ("sample --checkpoint words --negative red7 --guidance 1", "a scale of 1 means no guidance"),
    ("sample --checkpoint words --negative redd7", "did you mean"),
    ("sample --checkpoint words --labels 3", "draws captions"),
    ("sample --checkpoint words --prompt redd7", "did you mean 'red'"),
    ("sample --checkpoint words --prompt red7 blue7 --num 1", "--prompt has 2 texts; use --num 2 at least"),
    ("sample --prompt --out new.png", "--prompt needs a text to draw"),
    ("sample --prompt red7 --average model", "the network that ships draws"),
    *(
        (f"scale sample --prompt red7 {flag(name)}", f"--{name} is for a run or a file of weights")
        for name in ("format", "model", "text", "vae")
    ),
    ("train words --set model=sit", "data with captions need mmdit, and mmdit needs captions. Use model=mmdit."),
    ("train words --set qk_norm=true", "a field of sit, and 'words' has captions, which only mmdit takes. Leave it out."),
    ("train words --set levels=3", "a field of unet, and 'words' has captions, which only mmdit takes. Leave it out."),
    ("train toy --set qk_norm=true", "a field of sit, and 'two_classes' holds points, which only mlp takes. Leave it out."),
    ("train toy --set num_heads=2", "a field of sit, unet and mmdit, and 'two_classes' holds points, which only mlp takes."),
    *((f"train toy --set model={name}", "takes images, and the samples of 'two_classes' are points") for name in ("sit", "unet")),
    ("train digits --set model=mmdit", "mmdit needs captions"),
    ("train toy --set variant=hinge tau=0.3 --method dispersive", "no temperature"),
    ("train digits --set patch_size=4", "--set patch_size would change nothing"),
    ("train digits --set num_heads=2", "a field of sit, unet and mmdit"),
    ("train digits --set qk_norm=true", "a field of sit (--set model=sit)"),
    ("train digits_sit --set levels=3", "a field of unet (--set model=unet)"),
    ("train toy --set schedule=linear cooldown=0", "there is no cooldown"),
    ("train toy --set schedule=constant cooldown=0.5", "the schedule is constant"),
    ("train toy --steps 20 --set schedule=cosine cooldown=0.02", "at most one step"),
    ("train toy --steps 20 --set schedule=cosine cooldown=0 warmup=20", "warmup=20 takes all 20 steps"),
    ("train toy --steps 2 --sample-every 3", "nothing would be drawn"),
    ("train toy --out run", "already holds a run"),
    ("train toy --out run/checkpoints", "inside the run"),
    ("train toy --out run/checkpoints/step-00000002", "inside the run"),
    ("train toy --out picture.png", "picture.png, which is a file"),
    ("train toy --out new.npz", "has the name of a file"),
    ("train toy --out file", "file is not a folder"),
    ("train toy --out file/new", "file is not a folder"),
    ("train toy --out foreign", "does not belong to a run. It would be overwritten"),
    ("train toy --out latents", "holds latents"),
    ("train toy --resume --out new", "new is not a run"),
    ("train toy --out ~nobody-of-that-name/x", "home folder"),
    ("train digits --method vecor --set perturb=channel_shuffle --steps 2", "channel"),
    ("train toy --method dispersive --set block=9 --steps 2", "block"),
    ("scale train", "there are no latents"),
    ("scale train --latents nowhere", "nowhere"),
    ("scale train --latents L --price 2", "give --dry-run too"),
    (f"{_TI} --resume", "--resume would do nothing"),
    (f"{_TI} --save-every 5", "--save-every would do nothing"),
    (f"{_TI} --sample-every 5", "--sample-every would do nothing"),
    (f"{_TI} --log-every 5", "--log-every would do nothing"),
    (f"{_TI} --log json", "--log would do nothing"),
    (f"{_TI} --format sit", "no such file was given"),
    (f"{_TI} --format repa --start run", "no such file was given"),
    (f"{_TI} --start run", "is a run on two_classes"),
    (f"{_TI} --images L", "aligns with none"),
    (f"{_TI} --features L", "aligns with none"),
    (f"{_TI} --teacher random --method vecor", "choose --method repa"),
    (f"{_TI} --method repa --images L", "give --latents too"),
    (f"{_TI} --method repa --features L --teacher random", "both say what the teacher sees"),
    (f"{_TI} --set network=SiT-B/2", "--model"),
    (f"{_TI} --set model=mlp", "--model"),
    (f"{_TI} --set dataset=mnist", "--set dataset"),
    (f"{_TI} --set accumulate=2", "--micro-batch"),
    (f"{_TI} --set teacher=x", "only recipes with align > 0 read it"),
    (f"{_TI} --set align_block=2", "only recipes with align > 0 read it"),
    (f"{_TI} --set tau=2", "--set tau"),
    (f"{_TI} --size 64 --set size=64", "--set size and --size"),
    (f"{_TI} --quick --steps 2", "both say how many steps"),
    (f"{_TI} --price -1", "price is -1"),
    (f"{_TI} --out run.json", "has the name of a file"),
    (f"{_TI} --out latents", "holds latents"),
    ("sample --checkpoint nowhere", "is not a run"),
    ("sample --checkpoint picture.png", "is not a run"),
    ("sample --checkpoint run --average ema2", "ema2"),
    ("sample --checkpoint weights.pt --average model", "holds one network"),
    ("train toy --sample-every -1", "sample_every is -1"),
    ("sample --checkpoint nowhere.pt", "there is no file nowhere.pt"),
    ("sample --checkpoint run --quick --num 3", "both say how many samples"),
    ("sample --checkpoint run --solver sde --steps 1", "at least 2"),
    ("sample --checkpoint run --interval 0.2 0.8", "a scale of 1 means no guidance"),
    ("sample --checkpoint run --interval 0 1", "a scale of 1 means no guidance"),
    ("sample --checkpoint run --guidance 2 --interval 0.8 0.2", "low above high"),
    ("sample --checkpoint run --steps 4 --guidance 2 --interval 0.6 0.7", "the nearest is 0.75. Widen"),
    ("sample --checkpoint run --guidance 2 --interval 0.8 2", "high end is 2"),
    ("sample --checkpoint run --guidance nan", "guidance is nan"),
    ("sample --checkpoint run --debias", "works only for delta_fm, vecor, vecor_latent"),
    ("sample --checkpoint run --labels 9", "the classes are 0 to 1"),
    ("sample --checkpoint run --labels all", "turn, random"),
    *(
        (f"sample --checkpoint run {flag(name)}", f"--{name}. cfm-lite scale sample has it")
        for name in ("vae", "format", "model", "captions", "text")
    ),
    ("scale sample --checkpoint run --vae tiny", "is for runs on latents"),
    ("scale sample --checkpoint run --captions said.tsv", "is for a run whose captions a text encoder reads"),
    ("scale sample --checkpoint run --text file", "--text is for a run whose captions a text encoder reads"),
    ("evaluate --samples run/samples.npz --clip file", "--clip is read only with --reference"),
    *((f"scale sample --checkpoint run {flag(name)}", "is a run of cfm_lite") for name in ("format", "model")),
    ("scale sample --checkpoint run --format sit", "is a run of cfm_lite"),
    ("sample --checkpoint run --out grid.png", "it must end in .npz, such as grid.npz"),
    ("sample --checkpoint run --out grid", "it must end in .npz, such as grid.npz"),
    ("sample --checkpoint run --out run/checkpoints/step-00000002/weights.safetensors", "must end in .npz"),
    ("sample --checkpoint run --out data.npz", "holds no samples of cfm-lite sample. It would be overwritten"),
    ("sample --checkpoint run --out mine.npz", "mine.png does not belong to mine.npz. It would be overwritten"),
    ("sample --checkpoint run --out folder.npz", "which is a folder"),
    ("sample --checkpoint run --out file/x.npz", "file is not a folder"),
    *((f"{name} --seed 0", "has no option --seed") for name in ("evaluate", "prepare", "export")),
    *((f"{name} --quick", "has no option --quick") for name in ("evaluate", "prepare", "export")),
    *((f"{command} --device cpu", "has no option --device") for command in ("prepare", "export")),
    ("evaluate --samples run/samples.npz --inception standin", "read only with --reference"),
    *((f"evaluate --samples run/samples.npz --out {name}", "must end in .json") for name in ("x.png", "x.npz", "x", "run/samples.npz")),
    ("evaluate --samples run/samples.npz --out run/config.json", "would be overwritten"),
    ("evaluate --samples run/samples.npz --out run/checkpoints/step-00000002/state.json", "would be overwritten"),
    ("evaluate --samples run/samples.npz --out link.json", "would be overwritten"),
    ("evaluate --samples run/samples.npz --out folder.json", "which is a folder"),
    ("evaluate --samples nowhere.npz", "missing"),
    ("compare toy --report --seeds 2", "--seeds would change nothing"),
    *((f"compare toy --report {words}", "only reads what is there") for words in ("--list", "--quick", "--arms fm", "--seed 0")),
    *((f"compare toy --report {words}", "only reads what is there") for words in ("--group core", "--workers 1", "--set lr=1")),
    ("compare toy --report --device cpu", "only reads what is there"),
    ("compare toy --quick --set tau=3 --arms fm", "--set tau would change nothing in core"),
    ("compare toy --quick --set ema2=0.9", "--set ema2 would change nothing"),
    ("compare toy --quick --set num_heads=3", "--set num_heads would change nothing"),
    ("compare toy --quick --group weight --set weight=0.3", "--set weight would change nothing in weight"),
    ("compare toy --quick --out file", "file is not a folder"),
    ("compare toy --quick --out results.json", "has the name of a file"),
    ("compare toy --report --out nowhere", "missing"),
    ("demo --quick --out file", "file is not a folder"),
    ("demo --quick --out demo.png", "has the name of a file"),
    ("demo --quick --out run", "holds a run"),
    ("demo --quick --out new --seed -1", "seed is -1"),
    *(
        (f"prepare digits {flag(name)}", f"--{name}. cfm-lite scale prepare has it")
        for name in ("images", "out", "captions", "size", "vae", "batch", "rows", "workers", "latents", "teacher", "mirrors")
    ),
    ("scale prepare --images pictures", "give a folder with --out"),
    ("scale prepare --images pictures --out new --teacher random", "give --latents LATENTS too"),
    ("scale prepare --images pictures --out new --mirrors 2", "give --latents LATENTS too"),
    *(
        (f"scale prepare --latents L --out new {flag(name)}", f"--{name} is for latents")
        for name in ("captions", "size", "vae", "rows", "workers")
    ),
    ("scale prepare --captions file --out new", "give their folder with --images"),
    ("scale prepare --captions file --images pictures --out new", "cannot be read as captions"),
    ("scale prepare --images pictures --out file", "file is not a folder"),
    ("scale prepare --images pictures --out pictures --vae tiny", "which this command reads"),
    ("scale prepare --images nowhere --out new --vae tiny", "nowhere"),
    ("scale prepare --images pictures --out new --vae tiny --size 33", "size is 33"),
    ("scale prepare --images pictures --out new --vae tiny --batch 0", "batch is 0"),
    ("scale prepare --latents nowhere --out new", "nowhere"),
    ("export --checkpoint run --out x.npz", "must end in .safetensors or .pt"),
    ("export --checkpoint run --out x.txt", "such as x.safetensors"),
    ("export --checkpoint run --out run/checkpoints/step-00000002/weights.safetensors", "would be overwritten"),
    ("export --checkpoint run --out new.pt", "is a run on two_classes"),
    ("export --checkpoint nowhere --out new.pt", "is not a run"),
    ("export --checkpoint weights.pt --out new.pt", "is a file of weights already"),
    ("export --checkpoint weights.pt --out weights.pt", "which this command reads"),
]  # fmt: skip

# options that only a GPU shows: without one, another device is refused
ON_A_DEVICE = {
    (command, name) for command, name in options() if name in ("device", "no_compile")
}  # what a CPU does anyway
