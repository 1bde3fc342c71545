"""Lets PyPI's torchvision be imported beside a torch without CUDA.

Its compiled operators need CUDA libraries, and without them its own import fails at the two whose meta kernels it registers
unasked. They are declared here when torchvision is first looked for. Nothing of what processors of images and videos call is
in them.
"""

import importlib.abc
import sys


class DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")


sys.meta_path.insert(0, DeclareOperators())
