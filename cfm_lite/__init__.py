"""cfm_lite: flow matching that learns where to go and where not to go.

The rooms, in the order in which one reads them: data, paths, negatives, losses, objective,
training; then guidance, samplers, metrics, viz. Import them by name: `from cfm_lite import
objective, samplers`.
"""

__version__ = "0.1.0"
