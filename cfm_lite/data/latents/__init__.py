"""Images as latents on disk: encoded once by a codec, kept in hashed shards, read in any order.

`codec` turns images into latents and back, `prepare` encodes a folder of them, `shards` is the
layout of the files, `reader` gives rows to a training, and `features` holds what REPA's teacher
says of the same images.
"""

from cfm_lite.data.latents.reader import Latents, Pictures, part_of, prefetch

__all__ = ["Latents", "Pictures", "part_of", "prefetch"]
