"""Faults that are planted on purpose: a fast tier inside `make test`, a long one behind the marker
`faults` (`make test-faults`).
"""
