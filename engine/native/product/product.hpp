// Product: see product.cpp.
#pragma once

namespace headrace {

// The parameters are those of `cblas_sgemm`: C [m, n] = alpha * A [m, k] * B [k, n] + beta * C.
void sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
           int ldb, float beta, float *c, int ldc);

}  // namespace headrace
