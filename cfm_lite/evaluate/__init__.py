"""How samples are measured: judges of small pictures, Inception's features, and the card of a
distance.
"""
