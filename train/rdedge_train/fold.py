"""Batch norms folded into the convolutions before them: a network as its graph has it, parameter for parameter."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rdedge_train.efficientnet_lite import SameConv2d

_Convolution = nn.Conv2d | nn.ConvTranspose2d
Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def folded(network: Network, frame: Tensor) -> Network:
    """A copy in evaluation mode on the CPU that answers the same up to rounding, without batch norms.

    Every convolution has a bias then. ``frame``: uint8 (1, H, W, 3), any, to see what follows what.
    """
    plain = copy.deepcopy(network).cpu().eval()
    for name, (convolution, norm) in _pairs(plain, frame).items():
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        axis = 1 if isinstance(convolution, nn.ConvTranspose2d) else 0
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        bias = torch.zeros_like(factor) if convolution.bias is None else convolution.bias
        convolution.weight.mul_(factor.view(shape))
        convolution.bias = nn.Parameter((bias - norm.running_mean) * factor + norm.bias)
        plain.set_submodule(name, nn.Identity())
    return plain


def quick(network: Network, size_hw: tuple[int, ...], device: torch.device) -> Network:
    """``folded``, and with less memory read and written: no padded copies, rectifiers in place. Not to be trained."""
    plain = folded(network, torch.zeros((1, *size_hw, 3), dtype=torch.uint8))
    for module in plain.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = True
        elif isinstance(module, SameConv2d):
            module.pad_evenly()
    return plain.to(device)


def _pairs(network: nn.Module, frame: Tensor) -> dict[str, tuple[_Convolution, nn.BatchNorm2d]]:
    """By the batch norm's name: it, and the convolution whose output it reads."""
    made_by: dict[int, tuple[_Convolution, Tensor]] = {}
    pairs: dict[str, tuple[_Convolution, nn.BatchNorm2d]] = {}
    hooks: list[RemovableHandle] = []

    def remember(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, _Convolution)
        made_by[id(output)] = module, output  # the tensor is kept, so that no other gets its id

    def pair(name: str, norm: nn.BatchNorm2d) -> None:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            pairs[name] = made_by[id(inputs[0])][0], norm

        hooks.append(norm.register_forward_pre_hook(look))

    for name, module in network.named_modules():
        if isinstance(module, _Convolution):
            hooks.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d):
            pair(name, module)
    network(frame)
    for hook in hooks:
        hook.remove()
    return pairs
