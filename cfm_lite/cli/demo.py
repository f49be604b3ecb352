"""cfm-lite demo: four methods on real digits, in a minute and a half."""

from dataclasses import dataclass
from pathlib import Path

from cfm_lite.cli.arguments import Seeded

__all__ = ["Demo"]


@dataclass
class Demo(Seeded):
    """Train FM, ΔFM, VeCoR and dispersive on real digits from one starting point, draw samples,
    print a table.

    It takes 90 s on two cores.
    """

    out: Path = Path("runs/demo")
    """Where samples.png, fields.png, quality_vs_steps.png, pictures.png and metrics.json go."""

    def work(self) -> None:
        from cfm_lite.demo import demo

        print(demo(self.out, seed=self.seed, device=self.device, quick=self.quick))
