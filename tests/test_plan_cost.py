"""What is counted in compiled programs: products, loops, bytes moved and bytes sent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from perception_r1_jax.plan.cost import Cost, module_cost
from perception_r1_jax.plan.hlo import parse


def count(function, *shapes, turns=None, second_branch=0.5, devices=1, **jit) -> Cost:
    """The cost of a function of float32 arrays, compiled here."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) if isinstance(shape, tuple) else shape for shape in shapes]
    text = jax.jit(function, **jit).lower(*shapes).compile().as_text()
    return module_cost(parse(text), turns or {}, second_branch, devices)


def of_text(*lines: str, **options) -> Cost:
    """The cost of an entry computation of these lines."""
    text = "\n".join(["ENTRY %main (x: f32[8]) -> f32[8] {", *(f"  {line}" for line in lines), "}"])
    return module_cost(parse(text), {}, 0.5, options.get("devices", 4))


@pytest.mark.parametrize(
    ("equation", "left", "right", "flops"),
    [
        ("ij,jk->ik", (5, 7), (7, 11), 2 * 5 * 7 * 11),
        ("bij,bkj->bik", (3, 5, 7), (3, 11, 7), 2 * 3 * 5 * 7 * 11),
        ("bthd,hdm->btm", (2, 4, 3, 5), (3, 5, 8), 2 * 2 * 4 * 3 * 5 * 8),
    ],
)
def test_products_count_two_a_multiply_add(equation, left, right, flops):
    assert count(lambda a, b: jnp.einsum(equation, a, b), left, right).flops == flops


@pytest.mark.parametrize(
    ("stride", "padding", "gap"), [(1, ((0, 0),), 1), (2, ((3, 1),), 1), (1, ((4, 4),), 2), (3, ((0, 5),), 3)]
)
def test_convolutions_count_what_meets(stride, padding, gap):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,), padding, (gap,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    x, kernel = np.ones((2, 17, 3), np.float32), np.ones((4, 3, 5), np.float32)
    pairs = float(convolve(x, kernel).sum())  # of ones, each pair that meets adds one
    text = jax.jit(convolve).lower(x, kernel).compiler_ir("hlo").as_hlo_text()
    line = next(line for line in text.splitlines() if "convolution(" in line)
    window = line[line.index("window=") :]
    shape = line.split(" = ")[1].split(" ")[0]
    cost = of_text(
        "%a = f32[2,17,3]{2,1,0} parameter(0)",
        "%k = f32[4,3,5]{2,1,0} parameter(1)",
        f"ROOT %c = {shape} convolution(%a, %k), {window}",
    )
    assert cost.flops == 2 * pairs


def test_a_batch_written_as_a_dimension_of_space_is_no_more_than_a_batch():
    """As a TPU's compiler writes 8 products of [16, 32] and [32, 64]: on a dilated axis."""
    cost = of_text(
        "%a = bf16[8,16,32]{2,1,0} parameter(0)",
        "%b = bf16[8,32,64]{2,1,0} parameter(1)",
        "ROOT %c = bf16[8,16,64]{2,1,0} convolution(%a, %b), "
        "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
    )
    assert cost.flops == 2 * 8 * 16 * 32 * 64


@pytest.mark.parametrize("turns", [1, 6])
def test_a_loop_counts_as_often_as_it_turns(turns):
    def stack(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert count(stack, (4, 16), (turns, 16, 16)).flops == turns * 2 * 4 * 16 * 16


def test_loops_within_loops_multiply():
    def body(_, x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ x), x)

    assert count(lambda x: jax.lax.fori_loop(0, 3, body, x), (8, 8)).flops == 15 * 2 * 8**3


def test_a_loop_that_may_end_sooner_counts_to_its_bound():
    def run(x):
        def goes_on(at):
            return (at[0] < 7) & (at[1].sum() < 100)

        return jax.lax.while_loop(goes_on, lambda at: (at[0] + 1, jnp.tanh(at[1] @ at[1])), (0, x))

    assert count(run, (8, 8)).flops == 7 * 2 * 8**3


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_loop_that_counts_by_more_than_one_turns_less_often(step):
    """A TPU's compiler unrolls the loops in which a product's pieces come from other devices."""

    def run(x):
        def goes_on(at):
            return (at[0] < 8) & (at[1].sum() < 100)

        return jax.lax.while_loop(goes_on, lambda at: (at[0] + step, jnp.tanh(at[1] @ at[1])), (0, x))

    assert count(run, (8, 8)).flops == -(-8 // step) * 2 * 8**3


def test_line_breaks_in_a_kernel_s_attributes_end_nothing():
    kernel = """%kernel = f32[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", kernel_metadata={
"block": "{ 512 }"
}}, metadata={op_name="kernel"}"""
    parameter = "%x = f32[8,8]{1,0} parameter(0)"
    product = "ROOT %y = f32[8,8]{1,0} dot(%kernel, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert of_text(parameter, kernel, product).flops == 2 * 8**3


def blocks(x, table):
    """A loop whose number of turns is an argument, within one that counts to 3."""

    def inner(_, x):
        return jax.lax.fori_loop(0, table["used_blocks"], lambda _, x: jnp.tanh(x @ x), x)

    return jax.lax.fori_loop(0, 3, inner, x)


TABLE = {"used_blocks": jax.ShapeDtypeStruct((), jnp.int32)}


def test_a_loop_to_an_argument_counts_to_what_the_plan_says_of_it():
    assert count(blocks, (8, 8), TABLE, turns={"used_blocks": 4}).flops == 12 * 2 * 8**3


def test_a_loop_of_which_nothing_is_known_is_an_error():
    with pytest.raises(ValueError, match="nothing says how often the loop"):
        count(blocks, (8, 8), TABLE)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_branches_count_by_their_share(share):
    def run(x, flag):
        return jax.lax.cond(flag[0] > 0, lambda x: jnp.tanh(x @ x) @ x, lambda x: x @ x, x)

    one = 2 * 8**3
    assert count(run, (8, 8), (1,), second_branch=share).flops == (1 + share) * one


def test_branches_by_truth_and_calls_count_too():
    text = """\
%once (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %a = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%never (q: f32[8,8]) -> f32[8,8] {
  ROOT %q = f32[8,8]{1,0} parameter(0)
}

ENTRY %main (flag: pred[], x: f32[8,8]) -> f32[8,8] {
  %flag = pred[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  %y = f32[8,8]{1,0} conditional(%flag, %x, %x), true_computation=%once, false_computation=%never
  ROOT %z = f32[8,8]{1,0} call(%y), to_apply=%once
}
"""
    assert module_cost(parse(text), {}, 0.25, 1).flops == 1.25 * 2 * 8**3


def test_a_fusion_moves_its_arguments_and_its_result():
    moved = count(lambda x, y: jnp.exp(x) * y + 1, (512, 256), (512, 256)).bytes_moved
    assert moved == 3 * 512 * 256 * 4


def test_of_a_slice_only_the_slice_is_read():
    def take(x, table):
        return jax.lax.dynamic_slice_in_dim(x, table["used_blocks"], 4) * 2

    assert count(take, (1024, 256), TABLE).bytes_moved <= 2 * 4 * 256 * 4 + 64


def test_an_array_that_is_written_over_counts_by_what_is_new():
    def put(x, new, table):
        return jax.lax.dynamic_update_slice_in_dim(x, new, table["used_blocks"], 0)

    assert count(put, (1024, 256), (4, 256), TABLE, donate_argnums=0).bytes_moved <= 2 * 4 * 256 * 4 + 64


def test_of_a_slice_within_a_fusion_within_a_fusion_only_the_slice_is_read():
    """As a TPU's compiler writes it."""
    text = """\
%slice (p: f32[1024,128], i: s32[]) -> f32[4,128] {
  %p = f32[1024,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[4,128]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={4,128}
}

%outer (q: f32[1024,128], j: s32[]) -> f32[4,128] {
  %q = f32[1024,128]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %inner = f32[4,128]{1,0} fusion(%q, %j), kind=kLoop, calls=%slice
  ROOT %out = f32[4,128]{1,0} negate(%inner)
}

ENTRY %main (x: f32[1024,128], k: s32[]) -> f32[4,128] {
  %x = f32[1024,128]{1,0} parameter(0)
  %k = s32[] parameter(1)
  ROOT %y = f32[4,128]{1,0} fusion(%x, %k), kind=kLoop, calls=%outer
}
"""
    moved = module_cost(parse(text), {}, 0.5, 1).bytes_moved
    assert moved == 2 * 4 * 128 * 4 + 4  # and the index


def test_what_lies_in_the_memory_of_the_core_does_not_count():
    cost = of_text(
        "%x = f32[256,128]{1,0:T(8,128)} parameter(0)",
        "%near = f32[256,128]{1,0:T(8,128)S(1)} copy(%x)",
        "ROOT %y = f32[256,128]{1,0:T(8,128)S(1)} negate(%near)",
    )
    assert cost.bytes_moved == 256 * 128 * 4


def test_a_bitcast_in_a_fusion_of_its_own_is_no_end_of_reading():
    """As a TPU's compiler hands weights to a product."""
    text = """\
%cast (p: f32[64,128]) -> f32[128,64] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %b = f32[128,64]{0,1} bitcast(%p)
}

%product (w: f32[64,128], x: f32[4,128]) -> f32[4,64] {
  %w = f32[64,128]{1,0} parameter(0)
  %x = f32[4,128]{1,0} parameter(1)
  %v = f32[128,64]{0,1} fusion(%w), kind=kLoop, calls=%cast
  ROOT %y = f32[4,64]{1,0} convolution(%x, %v), dim_labels=bf_io->bf
}

ENTRY %main (w: f32[64,128], x: f32[4,128]) -> f32[4,64] {
  %w = f32[64,128]{1,0} parameter(0)
  %x = f32[4,128]{1,0} parameter(1)
  ROOT %out = f32[4,64]{1,0} fusion(%w, %x), kind=kOutput, calls=%product
}
"""
    cost = module_cost(parse(text), {}, 0.5, 1)
    assert cost.bytes_moved == 4 * (64 * 128 + 4 * 128 + 4 * 64)
    assert cost.flops == 2 * 4 * 128 * 64


def test_what_is_fetched_ahead_is_read_once():
    """As a TPU's compiler fetches a part of an array, and a whole one, into the memory of the core."""
    cost = of_text(
        "%x = f32[1024,128]{1,0:T(8,128)} parameter(0)",
        "%a = ((f32[1024,128]{1,0:T(8,128)}), f32[8,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8]}",
        "%b = f32[8,128]{1,0:S(1)} slice-done(%a)",
        "%c = (f32[1024,128]{1,0:T(8,128)S(1)}, f32[1024,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)",
        "ROOT %d = f32[1024,128]{1,0:T(8,128)S(1)} copy-done(%c)",
    )
    assert cost.bytes_moved == 8 * 128 * 4 + 1024 * 128 * 4


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def test_a_sum_over_devices_sends_nearly_twice_itself(mesh):
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
    cost = count(lambda x: x.sum(0), (8, 1024), devices=8, in_shardings=split, out_shardings=whole)
    assert cost.collective_bytes == {"all-reduce": 2 * 7 / 8 * 1024 * 4}


def test_a_gather_sends_all_but_one_share(mesh):
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
    cost = count(lambda x: x * 2, (8, 1024), devices=8, in_shardings=split, out_shardings=whole)
    assert cost.collective_bytes == {"all-gather": 7 / 8 * 8 * 1024 * 4}


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[1,4]<=[4]", 4),
        ("[2,2]<=[2,2]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", 2),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", 2),
        ("{}", 4),
    ],
)
def test_groups_of_devices_as_compilers_write_them(groups, size):
    cost = of_text(
        "%x = f32[64]{0} parameter(0)", f"ROOT %y = f32[64]{{0}} all-to-all(%x), replica_groups={groups}, a=1"
    )
    assert cost.collective_bytes == {"all-to-all": 256 * (size - 1) / size}


def test_groups_that_cannot_be_read_are_no_guess():
    with pytest.raises(ValueError, match="which devices take part in y cannot be read: , replica_groups=V2"):
        of_text("%x = f32[64]{0} parameter(0)", "ROOT %y = f32[64]{0} all-to-all(%x), replica_groups=V2")


def test_a_sum_that_is_scattered_by_a_fusion_counts_once():
    text = """\
%all-reduce-scatter.1 (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %sum = f32[64]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[16]{0} dynamic-slice(%sum, %zero), dynamic_slice_sizes={16}
}

ENTRY %main (x: f32[64]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  ROOT %out = f32[16]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    cost = module_cost(parse(text), {}, 0.5, 4)
    assert cost.collective_bytes == {"reduce-scatter": 256 * 3 / 4}


def test_a_collective_in_two_halves_counts_once():
    cost = of_text(
        "%x = f32[64]{0} parameter(0)",
        "%begun = (f32[64]{0}, f32[256]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
        "ROOT %y = f32[256]{0} all-gather-done(%begun)",
    )
    assert cost.collective_bytes == {"all-gather": 256 * 4 * 3 / 4}


def test_a_collective_behind_other_work_is_counted_where_it_begins():
    """As a TPU's compiler writes it: a fusion begins it, all work that hides it names it again, and a fusion waits."""
    gather = "all-gather(%part), replica_groups={{0,1,2,3}}, dimensions={0}"
    text = f"""\
%begin (part: f32[64]) -> (f32[64], f32[256], u32[]) {{
  %part = f32[64]{{0}} parameter(0)
  %gather.1 = f32[256]{{0}} {gather}
  ROOT %begun = (f32[64]{{0}}, f32[256]{{0}}, u32[]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (part: f32[64], whole: f32[256], x: f32[8]) -> (f32[8], f32[64], f32[256]) {{
  %part = f32[64]{{0}} parameter(0)
  %whole = f32[256]{{0}} parameter(1)
  %x = f32[8]{{0}} parameter(2)
  %work = f32[8]{{0}} negate(%x)
  %gather.2 = f32[256]{{0}} {gather}
  ROOT %both = (f32[8]{{0}}, f32[64]{{0}}, f32[256]{{0}}, f32[256]{{0}}) tuple(%work, %part, %whole, %gather.2)
}}

%end (part: f32[64], whole: f32[256]) -> f32[256] {{
  %part = f32[64]{{0}} parameter(0)
  %whole = f32[256]{{0}} parameter(1)
  %gather.3 = f32[256]{{0}} {gather}
  ROOT %ended = f32[256]{{0}} custom-call(%whole, %gather.3), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (part: f32[64], x: f32[8]) -> f32[256] {{
  %part = f32[64]{{0}} parameter(0)
  %x = f32[8]{{0}} parameter(1)
  %a = (f32[64]{{0}}, f32[256]{{0}}, u32[]) fusion(%part), kind=kCustom, calls=%begin
  %w = f32[256]{{0}} get-tuple-element(%a), index=1
  %b = (f32[8]{{0}}, f32[64]{{0}}, f32[256]{{0}}, f32[256]{{0}}) fusion(%part, %w, %x), calls=%async_collective_fusion.1
  %v = f32[256]{{0}} get-tuple-element(%b), index=2
  ROOT %out = f32[256]{{0}} fusion(%part, %v), kind=kCustom, calls=%end
}}
"""
    cost = module_cost(parse(text), {}, 0.5, 4)
    assert cost.collective_bytes == {"all-gather": 4 * 256 * 3 / 4}
    assert cost.bytes_moved == 4 * (64 + 256) + 4 * (8 + 8), "what is gathered, and the work that hides it"
