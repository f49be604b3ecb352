"""What only a GPU can show, in ten minutes on one: `make bench-gpu`, or on a CPU with tiny
networks, to try the program itself.
"""
