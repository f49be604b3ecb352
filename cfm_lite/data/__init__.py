"""Data sets: `toy` is made on the fly, `digits` ships with scikit-learn, others are files on disk.

Every loader returns (x1, y): float32 data scaled for noise N(0, I), and int64 labels from 0. `root`
finds the files.
"""
