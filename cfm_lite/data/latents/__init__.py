"""Images as latents on disk: encoded once by a codec, kept in hashed shards, read in any order.

`codec` turns images into latents and back. `prepare` encodes a folder of images. `shards` defines
the files. `reader` gives rows to a training. `features` holds the features of REPA's teacher for
the same images.
"""

from cfm_lite.data.latents.reader import Latents, Pictures, part_of, prefetch

__all__ = ["Latents", "Pictures", "part_of", "prefetch"]
