"""Traffic, memory and loops of compiled programs, against numbers counted by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from twelve_in_one.models.flops import product_flops
from twelve_in_one.parallel.sharding import make_mesh
from twelve_in_one.preflight import hlo
from twelve_in_one.preflight.figures import summed

WIDTH, ROWS, TURNS = 64, 16, 5


@functools.cache
def step_costs(slices, split):
    """Costs of the gradient of a loop of layers, with its weights split over `data` or not."""
    mesh = make_mesh(model=1 if split else 2, slices=slices)

    def gradient(weights, x):
        def loss(weights):
            return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0])

        return jax.grad(loss)(weights)

    def of(shape, *axes):
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    rows = tuple(axis for axis in ("slice", "data") if axis in mesh.shape)
    weights = of((TURNS, WIDTH, WIDTH), None, "data" if split else None)
    jitted = jax.jit(gradient, out_shardings=weights.sharding)
    traced = jitted.trace(weights, of((ROWS, WIDTH), rows))
    text = traced.lower().compile().as_text()
    return product_flops(traced.jaxpr), hlo.costs(text, mesh.shape, island=8 // slices)


def test_gradients_of_a_loop_are_summed_along_the_axes_of_rows():
    _, costs = step_costs(1, False)
    (found,) = summed(costs.collectives)
    # Of 8 devices, 4 hold different rows: each sums the gradients of all weights.
    assert (found.kind, found.axes, found.ways, found.islands) == ("all-reduce", ("data",), 4, 1)
    assert found.bytes == 4 * TURNS * WIDTH * WIDTH
    assert costs.unknown_loops == 0


def test_over_two_slices_split_weights_are_gathered_inside_and_gradients_cross():
    _, costs = step_costs(2, True)
    found = summed(costs.collectives)
    crossing = [item for item in found if "slice" in item.axes]
    assert crossing and all(item.kind == "all-reduce" for item in crossing)
    assert {item.islands for item in crossing} == {2}
    gathers = [item for item in found if item.kind == "all-gather"]
    assert gathers and all(item.axes == ("data",) and item.islands == 1 for item in gathers)
    assert "transpose" in crossing[0].source  # of the backward pass


def test_flops_of_a_loop_count_every_turn():
    flops, _ = step_costs(1, False)
    # A product for the layer, and one for each of its two gradients: that of x is not taken by the
    # first layer alone, but its loop does not know.
    assert flops == {"float32": 3 * TURNS * 2 * ROWS * WIDTH * WIDTH}


def test_flops_by_hand():
    def function(a, b, images, kernel):
        batched = jnp.einsum("bmk,bkn->bmn", a, b)
        convolved = jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        either = jax.lax.cond(batched[0, 0, 0] > 0, lambda x: x @ x.T, lambda x: x * 2, a[0, :, :3])
        return batched, convolved, either

    a, b = jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 5))
    images, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((2, 2, 3, 7), jnp.float32)
    flops = product_flops(jax.make_jaxpr(function)(a, b, images, kernel))
    # 2 x 3 x 4 x 5 products, 4 x 4 places x 7 results of 2 x 2 x 3, and the larger branch 3 x 3 x 3
    assert flops == {"float32": 2 * (2 * 3 * 4 * 5 + 16 * 7 * 12 + 27)}


def test_moved_bytes_of_a_loop():
    _, costs = step_costs(1, False)
    weights, rows = 4 * WIDTH * WIDTH, 4 * ROWS // 4 * WIDTH
    least = TURNS * (3 * weights + 4 * rows)  # read forward and back, and written
    assert least <= costs.moved <= 12 * least


ONE_DEVICE = """HloModule m

%fused (p0: f32[5,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[5,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %cut = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,8}
}

%put (q0: f32[5,8], q1: f32[1,8], q2: s32[]) -> f32[5,8] {
  %q0 = f32[5,8]{1,0} parameter(0)
  %q1 = f32[1,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %in = f32[5,8]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

%body (s: (s32[], f32[5,8])) -> (s32[], f32[5,8]) {
  %s = (s32[], f32[5,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[5,8]{1,0} get-tuple-element(%s), index=1
  %row = f32[1,8]{1,0:T(8,128)} fusion(%x, %i), kind=kLoop, calls=%fused
  %new = f32[5,8]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%put
  %chip = bf16[4,4]{1,0:T(8,128)(2,1)S(1)} custom-call(%row), custom_call_target="on chip"
  %cs = ((f32[5,8]{1,0}), f32[2,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2]}
  %cd = f32[2,8]{1,0:T(8,128)S(1)} slice-done(%cs)
  ROOT %t = (s32[], f32[5,8]{1,0}) tuple(%i, %new)
}

%condition (c: (s32[], f32[5,8])) -> pred[] {
  %c = (s32[], f32[5,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %end = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (a: f32[5,8]) -> f32[5,8] {
  %a = f32[5,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[5,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], /*index=1*/f32[5,8]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %r = f32[5,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_moved_bytes_by_hand():
    """Only the row is read and put back; what stays on the chip does not count."""
    costs = hlo.costs(ONE_DEVICE, {"data": 1, "model": 1}, island=1)
    row, number = 4 * 8, 4
    cut = row + number + row
    put = row + number + row
    assert costs.moved == 5 * (cut + put + row + 2 * row)
    assert costs.collectives == () and costs.unknown_loops == 0
    endless = ONE_DEVICE.replace("constant(5)", "constant(x)")
    assert hlo.costs(endless, {"data": 1, "model": 1}, island=1).unknown_loops == 1


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", [(0, 2), (1, 3)]),
        ("replica_groups={}, to_apply=%add", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4], dimensions={0}", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4,'b'=1] {'a','b'}, use_global", [(0, 1, 2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, use_global", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, use_global", [(0, 2), (1, 3)]),
    ],
)
def test_groups_in_the_ways_that_xla_writes_them(text, groups):
    assert hlo.groups_of(f"%x), {text}", "all-reduce", 4) == groups


def test_groups_of_permutations_and_unknown_ones():
    pairs = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, channel_id=1"
    assert len(hlo.groups_of(pairs, "collective-permute", 4)) == 4
    with pytest.raises(ValueError, match="written in a new way: '<0-3>'"):
        hlo.groups_of("replica_groups=<0-3>", "all-reduce", 4)
    with pytest.raises(ValueError, match="no compiled program"):
        hlo.parse("HloModule empty")


def test_axes_of_groups():
    shape = {"slice": 2, "data": 2, "model": 2}
    devices = np.arange(8).reshape(2, 2, 2)
    assert hlo.axes_of([tuple(devices[:, 0, 0])], shape) == ("slice",)
    assert hlo.axes_of([tuple(devices[0, :, 1])], shape) == ("data",)
    assert hlo.axes_of([tuple(devices[:, :, 0].ravel())], shape) == ("slice", "data")
    assert hlo.axes_of([tuple(devices.ravel())], shape) == ("slice", "data", "model")
