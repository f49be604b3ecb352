"""The report of the committed rows: data/results/README.md, tables.md and their figures.

    python -m tools.report [FOLDER]

`results` reads the rows, `figures` draws them, and `pages` fills their numbers into the sentences
of report.md, which people write.
"""
