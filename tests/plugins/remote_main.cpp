// FusedGates's host loop for another processor: requests on standard input, answers on standard output.
//
// A request is FusedGatesParams, a uint64 n, and n bytes of memory; the parameters' pointers are 1 + an offset into it, or 0.
// An answer is a uint64 (0, or the length of a refusal that follows) and, where nothing was refused, the memory.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "edgelstm/fused_gates_run.h"

using namespace edgelstm;

namespace {

char* memory = nullptr;

template <class T>
void place(T*& pointer) {
    std::uintptr_t const offset = reinterpret_cast<std::uintptr_t>(pointer);
    pointer = offset == 0 ? nullptr : reinterpret_cast<T*>(memory + offset - 1);
}

}  // namespace

int main() {
    FusedGatesParams params;
    std::uint64_t size;
    while (std::fread(&params, sizeof params, 1, stdin) == 1 && std::fread(&size, sizeof size, 1, stdin) == 1) {
        memory = static_cast<char*>(::operator new(size, std::align_val_t{64}));
        if (std::fread(memory, 1, size, stdin) != size) {
            return 1;
        }
        place(params.z);
        place(params.c);
        place(params.pI.data);
        place(params.pF.data);
        place(params.pO.data);
        place(params.hOld);
        place(params.active);
        place(params.h);
        place(params.cOut);
        place(params.nonFinite);
        char const* refused = fusedGatesOnHost(params);
        std::uint64_t const length = refused == nullptr ? 0 : std::strlen(refused);
        std::fwrite(&length, sizeof length, 1, stdout);
        std::fwrite(refused == nullptr ? memory : refused, 1, refused == nullptr ? size : length, stdout);
        std::fflush(stdout);
        ::operator delete(memory, std::align_val_t{64});
    }
    return 0;
}
