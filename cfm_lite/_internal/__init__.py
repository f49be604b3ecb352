"""What every room shares and no user calls: checks, kernels, lazy imports, paths, the terminal."""
