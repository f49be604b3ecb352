"""The explorers' engine under Node, held against numbers that Python writes."""
