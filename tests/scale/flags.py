"""The options and recipe fields that only imagenet reads: see tests/flags.py. The names of files
are those of test_flags.py here.
"""

_TRAIN = "scale train --model SiT-Ti/2 --latents L --out O --batch 8 --set shard=2 --steps 2"
_DRY = "scale train --model SiT-Ti/2 --dry-run --size 64 --set shard=2 --batch 8"
_REPA = f"{_TRAIN} --method repa"
_SAMPLE = "sample --checkpoint R --num 4 --steps 2 --out O"
_FILE = "scale sample --checkpoint sit.pt --model SiT-Ti/2 --num 4 --steps 2 --out O"
_PREPARE = "scale prepare --images pictures --vae tiny --size 32 --out O"
_FEATURES = "scale prepare --latents L --images pictures --teacher random --out O"
_WORDS = "scale train mscoco --model MMDiT-Ti/2 --batch 8 --set shard=2 --steps 2"
_SAID = "scale sample --checkpoint RC --num 4 --steps 2 --out O"
_EVALUATE = "evaluate --samples S --reference S --inception standin --out O.json"

ACTS = {  # as in tests/flags.py
    ("scale train", "recipe"): (
        f"{_WORDS} --dry-run --size 64",
        f"{_WORDS.replace('mscoco', 'cc3m')} --dry-run --size 64",
    ),
    ("scale train", "text"): (
        f"{_WORDS} --latents LC --out O --text clip",
        f"{_WORDS} --latents LC --out O --text ./nowhere",
    ),
    ("scale sample", "captions"): (f"{_SAID} --prompt a", f"{_SAID} --captions said.tsv"),
    ("scale sample", "text"): (f"{_SAID} --prompt a", "--text clip2"),
    ("evaluate", "clip"): (
        "evaluate --samples SC --reference pictures --inception standin --out O.json",
        "--clip clip2",
    ),
    ("scale train", "latents"): (
        _DRY,
        "scale train --model SiT-Ti/2 --dry-run --set shard=2 --batch 8 --latents L",
    ),
    ("scale train", "model"): (
        _TRAIN,
        "scale train --model SiT-S/2 --latents L --out O --batch 8 --set shard=2 --steps 2",
    ),
    ("scale train", "size"): (
        _DRY,
        "scale train --model SiT-Ti/2 --dry-run --size 32 --set shard=2 --batch 8",
    ),
    ("scale train", "dry_run"): (_TRAIN, "--dry-run"),
    ("scale train", "log"): (_TRAIN, "--log tensorboard"),
    ("scale train", "log_every"): (_TRAIN, "--log-every 1"),
    ("scale train", "method"): (_DRY, "--method vecor"),
    ("scale train", "price"): (_DRY, "--price 3"),
    ("scale train", "ranks"): (_DRY, "--ranks 2"),
    ("scale train", "micro_batch"): (_TRAIN, "--micro-batch 2"),
    ("scale train", "parallel"): (_TRAIN, "--parallel fsdp"),
    ("scale train", "checkpointing"): (_TRAIN, "--checkpointing"),
    ("scale train", "images"): (f"{_REPA} --teacher random", "--images pictures"),
    ("scale train", "features"): (f"{_REPA}", "--features F"),
    ("scale train", "teacher"): (f"{_REPA} --images pictures", "--teacher random"),
    ("scale train", "start"): (_TRAIN, "--start sit.pt"),
    ("scale train", "format"): (f"{_TRAIN} --start sit.pt", "--format repa"),
    ("scale sample", "batch"): (f"scale {_SAMPLE}", "--batch 3"),
    ("scale sample", "vae"): (f"scale {_SAMPLE}", "--vae folder_of_vae"),
    ("scale sample", "format"): (_FILE, "--format repa"),
    ("scale sample", "model"): (
        _FILE,
        "scale sample --checkpoint sit.pt --model SiT-S/2 --num 4 --steps 2 --out O",
    ),
    ("evaluate", "reference"): (
        _EVALUATE,
        "evaluate --samples S --reference pictures --inception standin --out O.json",
    ),
    ("evaluate", "inception"): (
        _EVALUATE,
        "evaluate --samples S --reference S --inception nowhere.pth --out O.json",
    ),
    ("scale prepare", "images"): (
        _PREPARE,
        "scale prepare --images others --vae tiny --size 32 --out O",
    ),
    ("scale prepare", "out"): (
        _PREPARE,
        "scale prepare --images pictures --vae tiny --size 32 --out P",
    ),
    ("scale prepare", "captions"): (_PREPARE, "--captions said.tsv"),
    ("scale prepare", "size"): (
        _PREPARE,
        "scale prepare --images pictures --vae tiny --size 64 --out O",
    ),
    ("scale prepare", "vae"): (
        _PREPARE,
        "scale prepare --images pictures --vae folder_of_vae --size 32 --out O",
    ),
    ("scale prepare", "batch"): (_PREPARE, "--batch 2"),
    ("scale prepare", "rows"): (_PREPARE, "--rows 5"),
    ("scale prepare", "workers"): (_PREPARE, "--workers 1"),
    ("scale prepare", "latents"): ("scale prepare --images pictures --out O --vae tiny", _FEATURES),
    ("scale prepare", "teacher"): (
        "scale prepare --latents L --images pictures --out O",
        "--teacher random",
    ),
    ("scale prepare", "mirrors"): (_FEATURES, "--mirrors 2"),
    ("export", "checkpoint"): (
        "export --checkpoint R --out O.safetensors",
        "export --checkpoint R2 --out O.safetensors",
    ),
    ("export", "format"): ("export --checkpoint R --out O.safetensors", "--format repa"),
    ("export", "out"): (
        "export --checkpoint R --out O.safetensors",
        "export --checkpoint R --out O.pt",
    ),
}

REFUSED = [
    (
        "scale sample --checkpoint R --format repa --num 2",
        "--format says what an official file holds",
    ),
    (
        "scale sample --checkpoint R --model SiT-Ti/2 --num 2",
        "--model says what an official file holds",
    ),
    ("sample --checkpoint R --interval 0.2 0.8 --num 2 --out O", "a scale of 1 means no guidance"),
    ("sample --checkpoint R --guidance 2 --interval 0.8 0.2 --num 2 --out O", "low above high"),
    ("sample --checkpoint R2 --debias --num 2 --out O", "--debias knows no inverse"),
    ("sample --checkpoint R --solver sde --steps 1 --num 2 --out O", "at least 2"),
    ("sample --checkpoint R --labels 3 --num 2 --out O", "the classes are 0 to 2"),
    ("scale sample --checkpoint R --vae nowhere --num 2 --out O", "nowhere"),
    ("sample --checkpoint R --num 2 --out grid.png", "has the name of a file"),
    ("sample --checkpoint R --num 2 --out L", "not empty"),
    ("sample --checkpoint R --num 2 --out R", "not empty"),
    ("evaluate --samples S --reference S --inception standin --out x.png", "must end in .json"),
    (
        "evaluate --samples S --reference S --inception standin --out S/settings.json",
        "would be overwritten",
    ),
    (
        "evaluate --samples S --reference S --inception standin --out L/index.json",
        "would be overwritten",
    ),
    ("scale train --model SiT-Ti/2 --latents L --out L", "holds latents"),
    ("scale train --model SiT-Ti/2 --latents L --out S", "holds samples"),
    (f"{_PREPARE[:-1]}R", "holds a run"),
    (f"{_FEATURES[:-1]}R", "holds a run"),
    (
        "scale train --model SiT-Ti/2 --latents L --out R --batch 8 --set shard=2",
        "already holds a run",
    ),
    (
        "scale train --model SiT-Ti/2 --latents L --out new --log tensorboard --batch 4096",
        "batch",
    ),
    ("scale train --model SiT-Ti/2 --latents L --out R/checkpoints --resume --size 64", "64"),
    ("scale train --model SiT-Ti/2 --latents L --out new --size 64", "64"),
    (
        "scale train --model SiT-Ti/2 --latents L --out new --method repa --images others",
        "others",
    ),
    (
        "scale train --model SiT-Ti/2 --latents L --out new --start R --batch 8 --set shard=2 "
        "--format repa",
        "no such file was given",
    ),
    (f"{_DRY} --sample-every 3", "--sample-every would do nothing"),
    (f"{_TRAIN} --sample-every 3", "nothing would be drawn"),
    (f"{_FILE} --average model", "holds one network"),
    (f"{_SAMPLE} --average ema2", "keeps no second average"),
    ("scale prepare --latents L --images others --out new --teacher random", "others"),
    (
        "scale prepare --latents L --images pictures --out L --teacher random",
        "which this command reads",
    ),
    (
        "scale prepare --images pictures --out pictures --vae tiny --size 32",
        "which this command reads",
    ),
    ("export --checkpoint R --out R/latent_mean.npy", "must end in"),
    (
        "export --checkpoint R --out R/checkpoints/step-00000006/weights.safetensors",
        "would be overwritten",
    ),
]

FIELDS = {  # of ImageNet: another value, and the run is another; None where --set refuses it
    "network": None,
    "learn_sigma": True,
    "size": None,  # the latents' own: another is refused
    "mirror": True,
    "ema_warmup": True,
    "teacher": None,  # another network, which timm would have to fetch; refused where nothing aligns
    "align": None,
    "align_block": None,
}
