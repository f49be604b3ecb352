"""What fills data/results and the pictures of the README: measurements, tables, figures. Nothing in
the package imports them.
"""
