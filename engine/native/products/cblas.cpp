// The function of the C interface to BLAS by which MLX's CPU backend multiplies float32 matrices. On x86-64 Linux the extension
// has it under the same name; engine/model/environment/cpu_products.py lets the dynamic linker find it first.
#include <atomic>

#include "module.hpp"
#include "products/sgemm.hpp"

namespace headrace {
namespace {

enum Order { ROWS_ADJACENT = 101, COLUMNS_ADJACENT = 102 };
enum Transposed { NO = 111 };

std::atomic<long long> products{0};

Operand operand(const float *values, int transposed, int apart) {
    return {values, apart, transposed != NO};
}

PyObject *py_products(PyObject *, PyObject *) { return PyLong_FromLongLong(products.load()); }

PyMethodDef FUNCTIONS[] = {
    {"products", py_products, METH_NOARGS,
     "products() -> int: products of float32 matrices that this process has computed by the extension's cblas_sgemm."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_products(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS) == 0; }

}  // namespace headrace

#if defined(__x86_64__) && defined(__GLIBC__)
// As in the standard (Basic Linear Algebra Subprograms Technical Forum, 2001, appendix B). Sizes that fit no matrix are not
// reported: the caller has checked them.
extern "C" __attribute__((visibility("default"))) void cblas_sgemm(int order, int transposed_a, int transposed_b, int m, int n,
                                                                   int k, float alpha, const float *a, int lda,
                                                                   const float *b, int ldb, float beta, float *c, int ldc) {
    using namespace headrace;
    products.fetch_add(1, std::memory_order_relaxed);
    if (order == COLUMNS_ADJACENT) {
        sgemm(n, m, k, alpha, operand(b, transposed_b, ldb), operand(a, transposed_a, lda), beta, c, ldc);
    } else {
        sgemm(m, n, k, alpha, operand(a, transposed_a, lda), operand(b, transposed_b, ldb), beta, c, ldc);
    }
}
#endif
