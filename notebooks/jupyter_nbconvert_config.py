"""Found by `jupyter nbconvert` when it runs in this folder: an export shows an explorer's picture, not a widget that needs a kernel."""

c = get_config()  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
c.NbConvertBase.display_data_priority = ["text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "text/plain"]
