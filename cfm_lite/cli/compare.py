"""cfm-lite compare: paired experiments over several seeds, and their report."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from tyro.conf import Positional, arg

from cfm_lite._internal.places import check_folder, expanded
from cfm_lite.cli.arguments import OptionalInt, Seeded, Texts, names_of, parse_settings
from cfm_lite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cfm_lite.lab.sweep import Plan

__all__ = ["Compare", "compare_suite", "report_suite"]


# the names of lab.SUITES, which --help is too quick to import
Suite = Literal[
    "toy",
    "digits",
    "mnist",
    "mnist_short",
    "mnist_guidance",
    "mnist_sit",
    "words",
    "cifar10",
    "cifar10_full",
]


@dataclass
class Compare(Seeded):
    """Run a paired experiment over several seeds, and report differences to FM with their
    intervals.

    It can be stopped at any time; the same command resumes it. Groups are core and the suite's
    ablations, such as weight.
    """

    again: ClassVar[str] = "The same command resumes it."

    suite: Annotated[
        Positional[Suite | None],
        arg(
            metavar="[SUITE]",
            help_behavior_hint="",
            help=f"What to compare (one of {', '.join(get_args(Suite))}; default: "
            "digits). The pictures of cifar10 have 16 x 16 pixels.",
        ),
    ] = None
    group: tuple[str, ...] = ("core",)
    """Which tables to fill: core, any of the suite's ablations, or all."""
    seeds: OptionalInt = None
    """How many seeds, counted from --seed (default: the group's own number)."""
    arms: Texts = ()
    """Only these arms of the groups, such as fm fm_scaled vecor (default: all)."""
    workers: OptionalInt = None
    """Parallel jobs on a CPU, each with one thread (default: one a core; with --quick 1)."""
    set: Texts = ()
    """Recipe fields that all arms share, as name=value: --set steps=500 weight=0.1."""
    out: Path = Path("data/results")
    """Where SUITE.json, SUITE.GROUP.json and SUITE.info.json go."""
    list: bool = False
    """Only list the unfinished jobs, with an estimate of their time."""
    report: bool = False
    """Only print the report of the SUITE that is named, and draw its figure beside the rows."""

    def work(self) -> None:
        from cfm_lite._internal.checks import check_count

        if self.report:
            self.refuse(
                names_of(Compare, "suite", "out", "report"),
                "would change nothing: --report only reads what is there.",
            )
            if self.suite is None:
                raise ConfigError(
                    "--report needs the name of a suite, such as cfm-lite compare digits --report. "
                    "The report of all suites is made by python -m tools.report, in a clone."
                )
            print(report_suite(self.suite, self.out))
            return
        suite = self.suite or "digits"
        changes = parse_settings(self.set)
        own = sorted({"dataset", "method", "seed", "sample_steps"} & set(changes))
        if own:
            raise ConfigError(
                f"--set {own[0]} cannot be given here: the suite decides it. Use --seed and "
                "--seeds, or another suite."
            )
        if "ema2" in changes:
            raise ConfigError(
                "--set ema2 would change nothing here: a comparison measures only the first "
                "average. Use ema, or leave it out."
            )
        seeds = None
        if self.seeds is not None:
            seeds = range(self.seed, self.seed + check_count("seeds", self.seeds))
        print(
            compare_suite(
                suite,
                out=self.out,
                groups=self.group,
                device=self.device,
                workers=self.workers,
                only_list=self.list,
                command=self.command,
                seeds=seeds,
                first_seed=self.seed,
                arms=self.arms,
                changes=changes,
                quick=self.quick,
            )
        )

    @property
    def command(self) -> str:
        """The command line that does the same, without folders."""
        words = ["cfm-lite compare", self.suite or "digits"]
        for name in ("group", "seeds", "arms", "set", "seed", "quick"):
            value, default = getattr(self, name), Compare.__dataclass_fields__[name].default
            if value != default:
                told = value if isinstance(value, tuple) else () if value is True else (value,)
                words += [f"--{name}", *map(str, told)]
        return " ".join(words)


def compare_suite(
    suite: str,
    *,
    out: str | Path,
    groups: Sequence[str],
    device: str,
    workers: int | None,
    only_list: bool,
    command: str,
    **chosen: Any,
) -> str:
    """Run what is missing of a suite's groups ("all": every group). Returns the report, or the list
    of jobs.

    `chosen` are seeds, first_seed, arms, changes and quick, as `lab.plan` takes them.
    """
    from cfm_lite import lab, runs
    from cfm_lite._internal.checks import check_choice, check_count

    check_choice("suite", suite, lab.SUITES)
    out, where = check_folder(expanded(out)), runs.pick_device(device)
    if workers is not None and where.type != "cpu":
        raise ConfigError(
            f"--workers would change nothing: on {where.type} the jobs run one after the other; "
            "leave it out."
        )
    every = tuple(lab.SUITES[suite].groups)
    settings = {
        "out": out,
        "groups": every if "all" in groups else groups or ("core",),
        "device": str(where),
        **chosen,
    }
    _check_changes(suite, settings)
    many = (
        check_count("workers", workers)
        if workers is not None
        else _side_by_side(bool(chosen.get("quick")))
    )
    if only_list:
        return listing(lab.plan(suite, **settings), many)
    lab.compare(suite, workers=many, command=command, **settings)
    store = lab.Store(out, suite)
    if store.rows("core"):
        return report_suite(suite, out)
    files = [str(store.path(group)) for group in settings["groups"]]
    need = "No report yet: it is about the core, which has no rows here. Run it with --group core."
    return "\n".join([*files, need])


def _check_changes(suite: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a recipe field that no trial of these groups reads, or that each of
    them sets.
    """
    from cfm_lite import lab
    from cfm_lite._internal.checks import check_choice
    from cfm_lite.lab.suites import trials as trials_of
    from cfm_lite.runs.reads import READS, unread

    changes = settings.get("changes") or {}
    if not changes:
        return

    def trials(given: Mapping[str, Any]) -> list[Any]:
        seeds, quick, arms = (
            settings.get("seeds") or (0,),
            bool(settings.get("quick")),
            settings.get("arms", ()),
        )
        whole = {**(lab.SUITES[suite].miniature if quick else {}), **given}
        how = {"seeds": seeds[:1], "arms": arms, "changes": whole, "quick": quick}
        return [trial for group in settings["groups"] for trial in trials_of(suite, group, **how)]

    for group in settings["groups"]:
        check_choice("group", group, lab.SUITES[suite].groups)
    keys = [trial.key for trial in trials(changes)]
    for name, value in changes.items():
        before = trials({field: given for field, given in changes.items() if field != name})
        # the suite has this value already
        same = all(getattr(trial.recipe, name) == value for trial in before)
        # controls read the fields of VeCoR
        idle = name not in READS["vecor"] and all(unread(trial.recipe, [name]) for trial in before)
        if keys and not same and (idle or keys == [trial.key for trial in before]):
            groups = ", ".join(settings["groups"])
            raise ConfigError(
                f"--set {name} would change nothing in {groups}: no arm there reads it, or each "
                "sets its own. Leave it out."
            )


def _side_by_side(quick: bool) -> int:
    """One job a core. A quick sweep runs one at a time: its jobs are shorter than the start of a
    process.
    """
    return 1 if quick else os.cpu_count() or 1


def listing(plan: "Plan", workers: int) -> str:
    """The unfinished jobs of a plan, with an estimate of their time together."""
    seconds = plan.seconds()
    lines = [
        f"{job.key}  about {second:6.0f} s  {job.label}" for job, second in zip(plan.jobs, seconds)
    ]
    every = {trial.key for trial in plan.trials}
    done = len(every) - sum(len(job.trials) for job in plan.jobs)
    minutes = sum(seconds) / workers / 60
    told = f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
    total = f"{done} of {len(every)} trials are done; {len(plan.jobs)} jobs are left, about "
    return "\n".join([*lines, f"{total}{told} with {workers} workers"])


def report_suite(suite: str, out: str | Path) -> str:
    """The text report of a suite's core, and its figure beside the rows.

    A miniature is called so, and has no figure.
    """
    from cfm_lite import lab, viz
    from cfm_lite.lab.figures import quality_figure

    out = check_folder(expanded(out))
    store = lab.Store(out, suite)
    path, rows = store.path("core"), store.rows("core")
    if not rows:
        raise DataError(
            f"{path} is missing, or holds no rows. Run cfm-lite compare {suite} first, or give the "
            "right folder."
        )
    steps = max(row["nfe"] for row in rows)
    measured = {row["metric"] for row in rows}
    shown = [
        metric
        for metric in (
            *("frechet", "sliced_wasserstein", "accuracy", "recall"),
            *("right_seen", "right_held_out", "colours_held_out", "kinds_held_out"),
        )
        if metric in measured
    ]
    where, miniature = [str(path)], any(row.get("miniature") for row in rows)
    if not miniature:
        where.append(str(viz.save(quality_figure(suite, rows), path.with_suffix(".png"))))
    ways: dict[tuple[str, float], list[Any]] = {}
    for row in rows:
        ways.setdefault((row["sampler"], row["guidance"]), []).append(row)

    def tables(metric: str) -> Iterator[str]:
        for (sampler, guidance), mine in ways.items():
            way = f"{sampler}, guidance {guidance:g}: " if len(ways) > 1 else ""
            place = (metric, steps, "fm")
            if any(
                (row["metric"], row["nfe"], row["method"]) == place and row["value"] is not None
                for row in mine
            ):
                yield way + lab.report(mine, metric, steps)
            else:
                ran = any(row["method"] == "fm" for row in mine)
                why = "has no finite values there" if ran else "was not run. Run it, too: --arms fm"
                yield f"{way}{metric} at {steps} evaluations: no differences, because fm {why}."

    head = (
        ["A miniature, which shows that everything runs; its numbers mean nothing."]
        if miniature
        else []
    )
    return "\n\n".join(
        [*head, *(table for metric in shown for table in tables(metric)), "\n".join(where)]
    )
