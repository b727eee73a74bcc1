"""Vector registers as values: several numbers that one instruction multiplies and adds.

A core holds 4, 8 or 16 float32 in one register (NEON, AVX2, AVX-512) and computes with all of them in the time of one.
A plain loop is turned into such instructions by the compiler, and for elementwise work that is as good as it gets. It
is not for a matrix product, where all depends on *which* numbers stay in registers from one turn of the loop to the
next. So this file gives kernels a type for them:

    b = load(row, n, lanes)      # lanes numbers of a row, from place n on
    c = madd(a, b, c)            # a b + c, for one number a: two flops for each lane
    store(out, n, c)

A vector wider than the machine's registers takes several of them, a longer one on an older machine just more
instructions: LLVM, the compiler below Numba, sees to that. C programmers write the same with intrinsics, machine by
machine. Indices are not checked.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

from tinyvit.kernels.backend import jit, numba

if numba:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.core.codegen import get_host_cpu_features
    from numba.extending import intrinsic, models, register_model

    # The same choice as the compiler's own, which Numba's environment variables can change.
    _features = numba.config.CPU_FEATURES if numba.config.CPU_FEATURES is not None else get_host_cpu_features()
    WIDE_REGISTERS = "+avx512f" in _features.split(",")

    class Vector(types.Type):
        """The compiler's view of `lanes` floats of a type, side by side in registers."""

        def __init__(self, dtype, lanes):
            self.dtype, self.lanes = dtype, lanes
            super().__init__(f"Vector({dtype}, {lanes})")

    @register_model(Vector)
    class _VectorModel(models.PrimitiveModel):
        def __init__(self, manager, vector):
            super().__init__(manager, vector, ir.VectorType(manager[vector.dtype].get_value_type(), vector.lanes))

    def _address(context, builder, array_type, array, index, vector):
        numbers = context.make_array(array_type)(context, builder, value=array).data
        return builder.bitcast(builder.gep(numbers, [index]), context.get_value_type(vector).as_pointer())

    def _spread(builder, number, vector_type):
        """`number` in every lane."""
        undefined, first = ir.Constant(vector_type, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector_type.count), None)  # a mask of zeros
        return builder.shuffle_vector(builder.insert_element(undefined, number, first), undefined, everywhere)

    @intrinsic(prefer_literal=True)
    def load(typing, row, n, lanes):
        """row[n : n + lanes] of a contiguous row, as a vector; `lanes` is a constant."""
        vector = Vector(row.dtype, lanes.literal_value)

        def emit(context, builder, signature, arguments):
            n = context.cast(builder, arguments[1], signature.args[1], types.intp)
            address = _address(context, builder, signature.args[0], arguments[0], n, vector)
            return builder.load(address, align=row.dtype.bitwidth // 8)

        return vector(row, n, lanes), emit

    @intrinsic
    def store(typing, row, n, vector):
        """row[n : n + lanes] = vector."""

        def emit(context, builder, signature, arguments):
            n = context.cast(builder, arguments[1], signature.args[1], types.intp)
            address = _address(context, builder, signature.args[0], arguments[0], n, vector)
            builder.store(arguments[2], address, align=row.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(row, n, vector), emit

    @intrinsic
    def madd(typing, a, b, c):
        """a b + c for one number `a` and vectors b, c: a multiply-add instruction, rounded once, where there is one."""

        def emit(context, builder, signature, arguments):
            a, b, c = arguments
            product = builder.fmul(_spread(builder, a, b.type), b, flags=("contract",))
            return builder.fadd(product, c, flags=("contract",))

        return c(a, b, c), emit

    @intrinsic(prefer_literal=True)
    def spread(typing, number, lanes):
        """The vector with `number` in each of its lanes."""
        vector = Vector(types.unliteral(number), lanes.literal_value)

        def emit(context, builder, signature, arguments):
            return _spread(builder, arguments[0], context.get_value_type(vector))

        return vector(number, lanes), emit

    @intrinsic
    def window(typing, x, i, rows, j, columns):
        """x[i : i + rows, j : j + columns] of a 2-D array, unchecked and uncounted, for a kernel whose caller keeps x
        alive. (A slice counts the references to its array up and down, atomically, and checks its bounds. With slices
        instead, attention took 1.5 times as long for 17 tokens, and compiling it longer too.)"""
        view = types.Array(x.dtype, 2, "A")

        def emit(context, builder, signature, arguments):
            from numba.np.arrayobj import populate_array  # here, because importing it takes a tenth of all of tinyvit

            source = context.make_array(x)(context, builder, value=arguments[0])
            i, rows, j, columns = (
                context.cast(builder, value, kind, types.intp)
                for value, kind in zip(arguments[1:], signature.args[1:], strict=True)
            )
            strides = cgutils.unpack_tuple(builder, source.strides, 2)
            skipped = builder.add(builder.mul(i, strides[0]), builder.mul(j, strides[1]))
            result = context.make_array(view)(context, builder)
            populate_array(
                result, data=cgutils.pointer_add(builder, source.data, skipped), shape=(rows, columns),
                strides=strides, itemsize=source.itemsize, meminfo=None,
            )  # fmt: skip
            return result._getvalue()

        return view(x, i, rows, j, columns), emit

    def _lane_by_lane(instruction):
        """An operation on two vectors of one type."""

        @intrinsic
        def operation(typing, x, y):
            return x(x, y), lambda context, builder, signature, arguments: instruction(builder, *arguments)

        return operation

    def _larger(builder, x, y):
        return builder.select(builder.fcmp_ordered(">", x, y), x, y)

    @intrinsic
    def largest(typing, vector):
        """The largest number of a vector: half against half, in as many steps as it has halves."""

        def emit(context, builder, signature, arguments):
            (v,), n = arguments, vector.lanes
            while n > 1:
                n //= 2
                halves = [ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(i, i + n))) for i in (0, n)]
                v = _larger(builder, *(builder.shuffle_vector(v, v, half) for half in halves))
            return builder.extract_element(v, ir.Constant(ir.IntType(32), 0))

        return vector.dtype(vector), emit

    larger = _lane_by_lane(_larger)
    minus = _lane_by_lane(lambda builder, x, y: builder.fsub(x, y))
    plus = _lane_by_lane(lambda builder, x, y: builder.fadd(x, y))
    times = _lane_by_lane(lambda builder, x, y: builder.fmul(x, y))
    over = _lane_by_lane(lambda builder, x, y: builder.fdiv(x, y))

else:
    WIDE_REGISTERS = False
    load = store = madd = spread = window = largest = larger = minus = plus = times = over = None

LANES = 16 if WIDE_REGISTERS else 8  # float32 numbers in a register; of float64 it takes two registers


@jit
def highest(row):
    """The maximum of a contiguous row. The compiler does not vectorise a maximum by itself, because the order of
    comparisons decides what a NaN does."""
    if row.size < LANES:
        m = row[0]
        for j in range(1, row.size):
            m = max(m, row[j])
        return m
    top = load(row, row.size - LANES, LANES)  # the last ones, which the loop may leave over
    for j in range(0, row.size - LANES, LANES):
        top = larger(load(row, j, LANES), top)
    return largest(top)
