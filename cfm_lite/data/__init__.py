"""Where data comes from: `toy` (made on the fly), `digits` (ships inside scikit-learn), `mnist` and
others (files on disk).

Every loader returns (x1, y): float32 data scaled for noise N(0, I), and int64 labels from 0. `root`
knows where files live.
"""
