"""A real JupyterLab in a real browser: `make test-browser`. It needs Chromium and Playwright, and
nothing from the network.
"""
