"""cfm-lite evaluate: numbers for samples, with the card of how they were made."""

from dataclasses import dataclass
from pathlib import Path

from cfm_lite._internal.places import check_file
from cfm_lite.cli.arguments import OnDevice, OptionalPath, OptionalText
from cfm_lite.errors import ConfigError

__all__ = ["Evaluate"]


@dataclass
class Evaluate(OnDevice):
    """Measure samples by the data set's judge: accuracy, Fréchet distance, precision, recall,
    nearest-neighbour ratio.

    With --reference: FID, sFID, inception score, precision and recall in the features of
    Inception-v3, and for samples of MS-COCO's captions the CLIP score.
    """

    samples: Path = Path("runs/digits-fm-0/samples.npz")
    """An npz of cfm-lite sample, its folder, or the run; with --reference also images."""
    reference: OptionalPath = None
    """Images (npz with arr_0, folder, tar), statistics (npz with mu, sigma), or both in one npz."""
    inception: OptionalText = None
    """With --reference: a file of weights (default: downloaded once), or standin (random)."""
    clip: OptionalText = None
    """For the CLIP score: another CLIP, on the hub or in a folder (default: the run's encoder)."""
    out: OptionalPath = None
    """Where the rows go (default: metrics.json beside the samples, or NAME-metrics.json if that
    holds the rows of others)."""

    def work(self) -> None:
        from cfm_lite.evaluate.samples import evaluate
        from cfm_lite.runs import samples_of

        samples = samples_of(self.samples)
        if self.out is not None:
            inputs = [path for path in (samples, self.reference) if path is not None]
            check_file(self.out, (".json",), inputs=inputs)
        if self.reference is None:
            self.refuse(
                ["inception", "clip"],
                "is read only with --reference, for the metrics of images; give that too, or leave "
                "it out.",
            )
            if self.device not in ("auto", "cpu"):
                raise ConfigError(
                    f"--device {self.device} would change nothing: these samples are measured on "
                    "the CPU; leave it out."
                )
        print(evaluate(samples, self.reference, self.inception, self.out, self.device, self.clip))
