"""cfm-lite export: a run as a file for the official programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cfm_lite.cli.arguments import Common

__all__ = ["Export"]


@dataclass
class Export(Common):
    """Write the average of an ImageNet run for the official programs of SiT or REPA (DeltaFM)."""

    checkpoint: Path = Path("runs/imagenet-SiT-XL-2-vecor-0")
    """A run's folder, or one of its checkpoints."""
    format: Literal["sit", "repa"] = "sit"
    """The program to write for: sit, or repa (also DeltaFM), where time runs the other way."""
    out: Path = Path("exported.safetensors")
    """The file: .safetensors, or .pt with the key "ema"."""

    def work(self) -> None:
        from cfm_lite.scale.official import export_run

        print(f"{self.format} weights in {export_run(self.checkpoint, self.format, self.out)}")
