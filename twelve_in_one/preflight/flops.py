"""FLOPs of the matrix products and convolutions of a traced function, over all devices.

Counted before compilation, where loops still say how often they turn; what XLA would do with the
products (drop or repeat some) is not in it, nor anything but products. Rematerialised ones are.
"""

import collections
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.extend.core


def product_flops(jaxpr: Any) -> Mapping[str, float]:
    """Name of the inputs' dtype -> FLOPs, a multiplication and an addition counted as two.

    Loops that end by themselves (`while_loop`) count as one turn. Of branches the most expensive.

    Args:
      jaxpr: `Traced.jaxpr`, with or without constants.
    """
    total: collections.Counter[str] = collections.Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            left, right = (variable.aval for variable in equation.invars)
            (contracted, _), (batched, _) = params["dimension_numbers"]
            rest = math.prod(left.shape) * math.prod(right.shape)
            shared = math.prod(left.shape[i] for i in (*contracted, *batched))
            # [batch, m, k] x [batch, k, n]: both sizes, with what they share counted once
            batch = math.prod(left.shape[i] for i in batched)
            depth = shared / batch
            total[str(left.dtype)] += 2 * rest / (batch * depth)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, params["dimension_numbers"]
            result = equation.outvars[0].aval
            outputs = kernel.shape[numbers.rhs_spec[0]]
            total[str(kernel.dtype)] += (
                2 * math.prod(result.shape) * math.prod(kernel.shape) / outputs
            )
        elif name == "cond":
            branches = [product_flops(branch) for branch in params["branches"]]
            total.update(max(branches, key=lambda flops: sum(flops.values())))
        else:
            times = params["length"] if name == "scan" else 1
            if name == "shard_map":  # the body is that of one device
                mesh = params["mesh"]
                times = math.prod(mesh.shape.values())
            for inner in _inner(params):
                for dtype, flops in product_flops(inner).items():
                    total[dtype] += times * flops
    return dict(total)


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)):
                yield item
