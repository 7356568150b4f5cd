// Products of float32 matrices, with the same bits as the reference BLAS: each sum takes its terms in the same order, one
// after the other, without fused multiply-add. Only the sums that are computed side by side differ.
#pragma once

namespace headrace {

// The operand of a product: its rows are `apart`, or its columns if it is transposed.
struct Operand {
    const float *values;
    long apart;
    bool transposed;

    // From one row to the next, and from one column to the next.
    long rows() const { return transposed ? 1 : apart; }
    long columns() const { return transposed ? apart : 1; }
};

// c = alpha * a b + beta * c, with a [m, k], b [k, n] and c [m, n] row by row, `ldc` apart.
//
// The reference has two orders (sgemm.f): each term is added to beta * c; or, if b is transposed, the sum of the terms is
// multiplied by alpha and then added.
void sgemm(long m, long n, long k, float alpha, Operand a, Operand b, float beta, float *c, long ldc);

}  // namespace headrace
