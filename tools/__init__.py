"""What fills data/results and the README's pictures: measurements, tables, figures.

Nothing in the package imports it.
"""
