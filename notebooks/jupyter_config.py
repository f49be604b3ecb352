"""Read by JupyterLab as `make lab` starts it, and by `make html` (JUPYTER_CONFIG_PATH=notebooks).

An export holds the explorers alive: all that they need stands in the page.
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


def _alive(notebook, resources):
    from cfm_lite.widgets import alive

    return alive(notebook), resources


c.HTMLExporter.preprocessors = [_alive]
c.HTMLExporter.require_js_url = ""  # for widgets of a kernel, which an export has none of
