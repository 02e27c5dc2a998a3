"""Train the networks of `digits` and write what lies beside this file (development only).

    python -m models.train [resnet] [transformer] [lstm]

A network is written once, as ONNX: torch evaluates that very graph, and the weights that it finds
go back into the file, so nothing is exported. Needs torch; the tool itself never does.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from models.digits import NETWORKS

HERE = Path(__file__).parent
EPOCHS, BATCH, RATE = 100, 64, 3e-3
# Pull on the norm of each filter, row or gate: what is not needed goes to zero, so that files
# have something to prune, as over-wide networks that are trained with weight decay have.
SPARSITY = {"resnet": 6e-3, "transformer": 2e-4, "lstm": 1e-4}


def lstm(x: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Tensor:
    """ONNX's LSTM over x (T, N, I), gates in the order i o f c: Y (T, D, N, H)."""
    directions = []
    for d in range(len(w)):
        size = r.shape[2]
        h = c = x.new_zeros(x.shape[1], size)
        bias = b[d, : 4 * size] + b[d, 4 * size :]
        steps = []
        for step in x.flip(0) if d else x:
            i, o, f, new = (step @ w[d].T + h @ r[d].T + bias).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * new.tanh()
            h = o.sigmoid() * c.tanh()
            steps.append(h)
        directions.append(torch.stack(steps[::-1] if d else steps))
    return torch.stack(directions, 1)


def reshape(x: Tensor, target: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(target.tolist())])


def slice_(x: Tensor, start: Tensor, end: Tensor, axis: Tensor) -> Tensor:
    index = [slice(None)] * x.ndim
    index[int(axis)] = slice(int(start), int(end))
    return x[tuple(index)]


# Each takes the node's attributes and its inputs.
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, x, y: x + y,
    "Conv": lambda a, x, w, b=None: F.conv2d(x, w, b, a["strides"], a["pads"][0]),
    "Div": lambda _, x, y: x / y,
    "Erf": lambda _, x: x.erf(),
    "Flatten": lambda _, x: x.flatten(1),
    "Gemm": lambda _, x, w, b: x @ w.T + b,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "LSTM": lambda _, *inputs: lstm(*inputs),
    "MatMul": lambda _, x, y: x @ y,
    "MaxPool": lambda a, x: F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][0]),
    "Mul": lambda _, x, y: x * y,
    "Pow": lambda _, x, y: x**y,
    "ReduceMean": lambda a, x: x.mean(a["axes"], keepdim=bool(a["keepdims"])),
    "Relu": lambda _, x: x.relu(),
    "Reshape": lambda _, x, target: reshape(x, target),
    "Slice": lambda _, *inputs: slice_(*inputs),
    "Softmax": lambda a, x: x.softmax(a["axis"]),
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": lambda _, x, axes: x.squeeze(int(axes)),
    "Sub": lambda _, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}


def evaluate(
    model: onnx.ModelProto, weights: dict[str, Tensor], x: Tensor, training: bool = False
) -> Tensor:
    """Logits (N, 10) of x (N, 1, H, W); in training, batch norm uses and records the batch's."""
    values = weights | {"x": x}
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values[n] for n in node.input]
        if node.op_type == "BatchNormalization":
            x, scale, shift, mean, var = inputs
            y = F.batch_norm(x, mean, var, scale, shift, training, eps=attributes["epsilon"])
            values[node.output[0]] = y
        else:
            values[node.output[0]] = OPERATORS[node.op_type](attributes, *inputs)
    return values["logits"]


def shifted(x: Tensor, pixels: int = 1) -> Tensor:
    """Square images moved by up to so many pixels along each axis, each its own way."""
    grid = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    # The grid spans 2 from edge to edge.
    grid = grid + (torch.rand(len(x), 1, 1, 2) - 0.5) * (4 * pixels / x.shape[3])
    return F.grid_sample(x, grid, align_corners=False)


def weights_of(model: onnx.ModelProto) -> dict[str, Tensor]:
    return {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer
    }


def width_penalty(w: Tensor) -> Tensor:
    """Sum of the norms of a weight's outputs and inputs: its first two axes."""
    if w.ndim == 3:
        # Recurrent weights have their directions in front.
        w = w.flatten(0, 1)
    return sum(v.flatten(1).norm(dim=1).sum() for v in (w, w.transpose(0, 1)))


def train(name: str, x: Tensor, y: Tensor) -> onnx.ModelProto:
    """The network `name`, trained on images x (M, 1, 8, 8) and digits y (M)."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    weights = weights_of(model)
    norms = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    statistics = {n for node in norms for n in node.input[3:]}
    learnt = [
        w.requires_grad_()
        for n, w in weights.items()
        if w.is_floating_point() and w.ndim and n not in statistics
    ]
    optimiser = torch.optim.Adam(learnt, RATE)
    per_epoch = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * per_epoch)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: per_epoch * BATCH].split(BATCH):
            logits = evaluate(model, weights, shifted(x[batch]), training=True)
            penalty = sum(width_penalty(w) for w in learnt if w.ndim > 1)
            penalty = penalty + sum(weights[n.input[1]].abs().sum() for n in norms)
            loss = F.cross_entropy(logits, y[batch]) + SPARSITY[name] * penalty
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(weights[t.name].detach().numpy(), t.name))
    return model


def main(names: list[str]) -> None:
    # Only these images come from scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        x, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    np.savez_compressed(HERE / "digits_test.npz", x=test_x, y=test_y)
    np.savez_compressed(HERE / "digits_calib.npz", x=train_x[:256])
    for name in names or NETWORKS:
        model = train(name, torch.from_numpy(train_x), torch.from_numpy(train_y))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, HERE / f"digits_{name}.onnx")
        with torch.no_grad():
            guess = evaluate(model, weights_of(model), torch.from_numpy(test_x)).argmax(1)
        print(
            f"{name}: {np.mean(guess.numpy() == test_y):.4f} of {len(test_y)} test images",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
