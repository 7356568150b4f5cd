// Link: lets libmlx call `sgemm` in place of its BLAS. The loader's table of the functions that libmlx imports is writable;
// the one entry of that name is replaced, in this process alone. Other libraries keep theirs.
#include "module.hpp"
#include "product/product.hpp"
#include "python.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <elf.h>
#include <link.h>

#include <cstring>

namespace headrace {

namespace {

constexpr const char *LIBRARY = "/libmlx.so", *NAME = "cblas_sgemm";

// Replaces the entries of one loaded object; the loader has already turned the table's addresses into absolute ones.
int replace(const dl_phdr_info *object) {
    const ElfW(Dyn) *dynamic = nullptr;
    for (int i = 0; i < object->dlpi_phnum; ++i) {
        const ElfW(Phdr) &part = object->dlpi_phdr[i];
        if (part.p_type == PT_DYNAMIC) dynamic = reinterpret_cast<const ElfW(Dyn) *>(object->dlpi_addr + part.p_vaddr);
    }
    const ElfW(Sym) *symbols = nullptr;
    const char *names = nullptr;
    const ElfW(Rela) *entries = nullptr;
    std::size_t size = 0;
    for (; dynamic != nullptr && dynamic->d_tag != DT_NULL; ++dynamic) {
        if (dynamic->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym) *>(dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_STRTAB) names = reinterpret_cast<const char *>(dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_JMPREL) entries = reinterpret_cast<const ElfW(Rela) *>(dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_PLTRELSZ) size = dynamic->d_un.d_val;
        if (dynamic->d_tag == DT_BIND_NOW) return 0;  // then the table is read-only
        if (dynamic->d_tag == DT_FLAGS_1 && (dynamic->d_un.d_val & DF_1_NOW) != 0) return 0;
    }
    int count = 0;
    for (std::size_t i = 0; symbols != nullptr && names != nullptr && i < size / sizeof(ElfW(Rela)); ++i) {
        const auto symbol = ELF64_R_SYM(entries[i].r_info);
        if (ELF64_R_TYPE(entries[i].r_info) != R_X86_64_JUMP_SLOT || std::strcmp(names + symbols[symbol].st_name, NAME) != 0) {
            continue;
        }
        void **entry = reinterpret_cast<void **>(object->dlpi_addr + entries[i].r_offset);
        __atomic_store_n(entry, reinterpret_cast<void *>(&sgemm), __ATOMIC_RELEASE);
        ++count;
    }
    return count;
}

int visit(dl_phdr_info *object, std::size_t, void *count) {
    const char *name = object->dlpi_name == nullptr ? "" : object->dlpi_name;
    const char *end = std::strrchr(name, '/');
    if (end != nullptr && std::strcmp(end, LIBRARY) == 0) *static_cast<int *>(count) += replace(object);
    return 0;
}

}  // namespace

// How many entries were replaced: none while MLX is not loaded, or where its library has another form.
int link_products() {
    int count = 0;
    dl_iterate_phdr(visit, &count);
    return count;
}

}  // namespace headrace

#else

namespace headrace {

int link_products() { return 0; }

}  // namespace headrace

#endif

namespace headrace {

namespace {

PyObject *use_products(PyObject *, PyObject *) { return PyBool_FromLong(link_products() > 0); }

PyMethodDef METHODS[] = {
    {"use_products", method<use_products>(), METH_NOARGS,
     "use_products(): let a loaded MLX compute matrix products with this extension, which gives the same bits; whether it does."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_products(PyObject *module) { return PyModule_AddFunctions(module, METHODS) == 0; }

}  // namespace headrace
