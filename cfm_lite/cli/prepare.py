"""cfm-lite prepare: download a data set, or check that its files are whole."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from cfm_lite.cli.arguments import Common

__all__ = ["Prepare"]


@dataclass
class Prepare(Common):
    """Download a data set, or check that its files are whole. `scale prepare` encodes images."""

    dataset: Positional[
        Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar10-jpeg75"]
    ] = "mnist"
    """The data set."""

    def work(self) -> None:
        from cfm_lite.data import cifar10, digits, mnist

        if self.dataset in cifar10.NAMES:
            path = cifar10.download() if self.dataset == "cifar10" else None
            splits = [len(cifar10.load(split, name=self.dataset)[0]) for split in ("train", "test")]
            print(
                f"{self.dataset}: {splits[0]} + {splits[1]} images, "
                f"verified{f', in {path}' if path else ''}"
            )
            return
        if self.dataset == "digits":
            print(
                f"digits: {len(digits.load('all')[0])} images ship inside scikit-learn; nothing to "
                "fetch."
            )
            return
        folder = mnist.download(name=self.dataset)
        train, test = (len(mnist.load(split, name=self.dataset)[0]) for split in mnist.SPLITS)
        print(f"{self.dataset}: {train} + {test} images, verified, in {folder}")
