"""The probe of sharpness on each backend, and what PyTorch's products with a Hessian are compared with."""

from typing import Any

import keras
import numpy as np
from fits import Sink, fit, model_of_two_tasks, watch_of

from click_and_play import LOSSES, examples
from lossguard.keras import Sharpness
from lossguard.keras.held import compiled_loss
from lossguard.keras.preconditioner import preconditioner


def _adam() -> Any:
    return keras.optimizers.Adam(0.02, amsgrad=True)


def sharpness() -> Any:
    """Probes of a training, and one of a quadratic whose spectrum is known."""
    inputs, labels = examples(40)
    options: dict[str, Any] = {"first_products": 300, "products": 100, "tolerance": 1e-6}

    def ratios(told: dict[str, Any]) -> list[float]:
        return [value for value in told["scalars"]["sharpness_ratio"] if np.isfinite(value)]

    probe = Sharpness((inputs, labels), every=4, **options)
    probed = fit(_adam(), count=40, epochs=2, sharpness=probe)
    sinks: list[Sink] = []
    x = np.random.default_rng(5).normal(size=(40, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    quadratic = watch_of(sinks, sharpness=Sharpness((x, x[:, :1]), every=1, **options))
    model.compile(quadratic.wrap(keras.optimizers.SGD(0.3)), loss="mse")
    model.fit(x, x[:, :1], batch_size=20, verbose=0, callbacks=[quadratic])
    top = np.linalg.eigvalsh(2.0 / 40 * x.astype("float64").T @ x).max()
    return {
        "ratios": ratios(probed),
        "costs": [cost for cost in probed["scalars"]["sharpness_cost"] if np.isfinite(cost)],
        "weights": probed["weights"],
        "bare": fit(_adam(), count=40, epochs=2, watch=False)["weights"],
        "quadratic": [ratios(sinks[0].told()), 0.3 * top / 2.0],
    }


def products() -> Any:
    """On PyTorch: a dense Hessian, Lanczos over our products, the probe; and losses with little to differentiate."""
    import torch

    from lossguard.keras.curvature_torch import Curvature

    inputs, labels = examples(32)
    model = model_of_two_tasks()
    model.compile(keras.optimizers.Adagrad(0.1), loss=LOSSES)
    model.fit(inputs, labels, batch_size=4, shuffle=False, verbose=0)
    variables = model.optimizer._trainable_variables
    loss = compiled_loss(model, (inputs, labels))
    curvature = Curvature(loss, variables, preconditioner(model.optimizer).diagonal)
    shapes = [tuple(one.shape) for one in variables]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def cut(flat: Any) -> list[Any]:
        parts = zip(np.split(flat, cuts[:-1]), shapes, strict=True)
        return [torch.tensor(part.reshape(shape), dtype=torch.float32) for part, shape in parts]

    def flat(parts: Any) -> Any:
        return np.concatenate([np.ravel(part.detach().numpy()) for part in parts]).astype("float64")

    weights = flat([one.value for one in variables])

    def gradient_at(column: int, way: float) -> Any:
        for one, part in zip(variables, cut(weights + way * np.eye(len(weights))[column]), strict=True):
            one.assign(part)
        return flat(torch.autograd.grad(loss(), [one.value for one in variables]))

    # Column by column, by central differences of the plain gradient.
    columns = [(gradient_at(one, 1e-3) - gradient_at(one, -1e-3)) / 2e-3 for one in range(len(weights))]
    gradient_at(0, 0.0)
    hessian = np.stack(columns)
    kept = [one.value.grad if one.value.grad is None else one.value.grad.clone() for one in variables]
    squares = np.concatenate([np.ravel(one.numpy()) for one in model.optimizer._accumulators]).astype("float64")
    roots = (squares + 1e-7) ** -0.25
    dense = float(np.linalg.eigvalsh(roots[:, None] * (hessian + hessian.T) / 2 * roots)[-1])
    probe = Sharpness((inputs, labels), every=1, first_products=300, tolerance=1e-6)
    probe.check([model.optimizer], model)
    with torch.no_grad():
        ratio = probe.probe()["sharpness_ratio"]
    return {
        "dense": dense,
        "lanczos": _lanczos(lambda vector: flat(curvature.product(cut(vector))), len(weights), 30),
        "probed": ratio * 2.0 / 0.1,
        "gradients kept": all(
            one.value.grad is before or torch.equal(one.value.grad, before)
            for one, before in zip(variables, kept, strict=True)
        ),
        "negative": _ratio(lambda w: -9.0 * w[0] ** 2 / 2 + w[1] ** 2),
        "linear": _ratio(lambda w: w.sum()),
        "constant": _ratio(lambda w: torch.ones(())),
    }


def _ratio(loss: Any) -> float:
    """Of SGD with a rate of 0.5, on a loss of two weights in a loop of one's own; others are frozen or not in it."""
    weight, still, unused = (keras.Variable(np.ones(2, "float32")) for _ in range(3))
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([weight, still, unused])
    still.trainable = False
    probe = Sharpness(loss=lambda: loss(weight.value), every=1, first_products=200, tolerance=1e-6)
    probe.check([optimizer], None)
    return float(probe.probe()["sharpness_ratio"])


def _lanczos(product: Any, size: int, turns: int) -> float:
    """The top eigenvalue, by Lanczos with full reorthogonalisation in float64."""
    basis = [np.random.default_rng(5).normal(size=size)]
    basis[0] /= np.linalg.norm(basis[0])
    small = np.zeros((turns, turns))
    for turn in range(turns):
        moved = product(basis[turn])
        small[: turn + 1, turn] = [vector @ moved for vector in basis]
        for vector in basis + basis:
            moved = moved - (vector @ moved) * vector
        basis.append(moved / np.linalg.norm(moved))
    return float(np.linalg.eigvalsh(np.triu(small) + np.triu(small, 1).T)[-1])
