"""The public face of the states of servers and clones.

They are explained in `glb.model.states`.
"""

from .model.states import State

__all__ = ["State"]
