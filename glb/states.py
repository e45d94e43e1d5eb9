"""The states' public face: what a server and its clones can be in.

They are explained in `glb.model.states`.
"""

from .model.states import State

__all__ = ["State"]
