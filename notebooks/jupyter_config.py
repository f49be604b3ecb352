"""Read by JupyterLab as `make lab` starts it, and by `make html` (JUPYTER_CONFIG_PATH=notebooks).

In an export an explorer is a picture; as a widget it would need a kernel.
"""

c = get_config()  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
c.NbConvertBase.display_data_priority = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "text/latex",
    "image/png",
    "text/plain",
]
