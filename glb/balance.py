"""The policies' public face: the values of a server's ``policy``.

They are explained in `glb.model.policy`.
"""

from .model.policy import Policy

__all__ = ["Policy"]
