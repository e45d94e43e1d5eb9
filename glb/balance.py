"""The policies' public face: what a server's ``policy`` can be.

They are explained in `glb.model.policy`.
"""

from .model.policy import Policy

__all__ = ["Policy"]
