"""What the sections build; imported when a run needs it."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(config, *, outputs, shape):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, config.hidden), nn.ReLU(), nn.Linear(config.hidden, outputs)
    )


def margin(config):
    def loss(logits, label):
        return F.multi_margin_loss(logits.float(), label, margin=config.margin)

    return loss


def sign_descent(config, *, groups):
    return SignDescent(groups, {"lr": config.lr})


class SignDescent(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())
