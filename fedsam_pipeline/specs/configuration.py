"""The configurations that a plan can be trained in."""

from typing import Literal

Configuration = Literal["main", "triplanar"]
"""``main``: slices along the plan's slice axis. ``triplanar``: along all three axes, by one model, whose probabilities are averaged"""
