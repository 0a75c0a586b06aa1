#!/usr/bin/env python3
"""Prints the table of known answers in tests/unit/test_optim.c: 5 steps of PyTorch's optimizers in double. Needs
torch; run by hand when a rule is added."""
import math

import torch

# weight [2, 3] then bias [2], as the slab holds them
start = [0.5, -0.25, 0.125, 1.0, -0.75, 0.3, 0.1, -0.2]
kinds = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-4, weight_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1, rho=0.9, eps=1e-4, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-4, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.99), eps=1e-4, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.99), eps=1e-4, weight_decay=0.01),
}
for name, make in kinds.items():
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    for step in range(5):
        w.grad = torch.tensor([math.sin(0.7 * i + step) for i in range(8)], dtype=torch.float64)
        optimizer.step()
    print('    {"%s", {%s}},' % (name, ", ".join("%.9f" % v for v in w.tolist())))
