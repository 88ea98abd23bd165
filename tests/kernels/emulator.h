// CUDA's threads on the host: each is a coroutine, and which one goes on is drawn at random at every place where threads
// wait for each other. So the code of a kernel runs as it is, and a missing barrier shows as a wrong result with some seed.
//
// Emulated: blocks that all run at once, __syncthreads, __shfl_xor_sync, atomicAdd, spinning on memory (EDGELSTM_YIELD).
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define EDGELSTM_YIELD() emulator::yield()

struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

namespace emulator {

struct Group {  // threads that wait for each other: a block or a warp
    unsigned size{0}, arrived{0}, generation{0};
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    unsigned block, index;
    bool done{false};
    Group* waitsFor{nullptr};
    unsigned generation{0};
};

inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Thread>> threads;
inline Thread* current = nullptr;
inline std::vector<Group> blocks, warps;
inline std::vector<float> exchanged;  // a value for each thread
inline std::vector<std::vector<char>> sharedMemory;
inline std::function<void()> const* body = nullptr;
inline unsigned threadsInBlock = 0;

inline void yield() { swapcontext(&current->context, &scheduler); }

inline void meet(Group& group) {
    unsigned const generation = group.generation;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        ++group.generation;
    }
    current->waitsFor = &group;
    current->generation = generation;
    yield();
    current->waitsFor = nullptr;
}

inline void start() {
    (*body)();
    current->done = true;
    yield();
}

// Runs `kernel` once for every thread; false if threads wait for each other for ever. Shared memory holds NaN at first.
inline bool run(unsigned blockCount, unsigned threadCount, int32_t sharedBytes, uint32_t seed,
                std::function<void()> const& kernel) {
    threads.clear(), blocks.assign(blockCount, Group{threadCount});
    warps.assign(blockCount * threadCount / 32, Group{32});
    exchanged.assign(blockCount * threadCount, 0.0F);
    sharedMemory.assign(blockCount, std::vector<char>(static_cast<size_t>(sharedBytes) + 64, '\xFF'));
    body = &kernel, threadsInBlock = threadCount, gridDim.x = blockCount;
    for (unsigned k = 0; k < blockCount * threadCount; ++k) {
        auto thread = std::make_unique<Thread>();
        thread->block = k / threadCount, thread->index = k % threadCount;
        thread->stack.resize(64 * 1024);
        getcontext(&thread->context);
        thread->context.uc_stack.ss_sp = thread->stack.data();
        thread->context.uc_stack.ss_size = thread->stack.size();
        thread->context.uc_link = &scheduler;
        makecontext(&thread->context, start, 0);
        threads.push_back(std::move(thread));
    }
    std::mt19937 random(seed);
    std::vector<Thread*> left;
    for (auto& thread : threads) {
        left.push_back(thread.get());
    }
    // Whoever may go on goes on for a stretch in an order drawn anew each round; some are held back for whole rounds.
    for (unsigned rounds = 0; !left.empty(); ++rounds) {
        if (rounds > 2000000) {
            return false;
        }
        bool const heldBack = seed != 0 && rounds % 4 != 3;
        uint32_t const slowWarp = random();
        if (seed != 0) {
            for (size_t k = left.size() - 1; k > 0; --k) {
                std::swap(left[k], left[random() % (k + 1)]);
            }
        }
        for (Thread* thread : left) {
            if (thread->waitsFor != nullptr && thread->waitsFor->generation == thread->generation) {
                continue;
            }
            uint32_t const warp = (thread->block * threadsInBlock + thread->index) / 32;
            if (heldBack && ((warp * 2654435761U) ^ slowWarp) % 3 == 0) {
                continue;
            }
            current = thread, threadIdx.x = thread->index, blockIdx.x = thread->block;
            swapcontext(&scheduler, &thread->context);
        }
        std::vector<Thread*> still;
        for (Thread* thread : left) {
            if (!thread->done) {
                still.push_back(thread);
            }
        }
        left.swap(still);
    }
    return true;
}

inline char* shared() {
    char* const start = sharedMemory[current->block].data();
    return start + (64 - reinterpret_cast<uintptr_t>(start) % 64) % 64;
}

}  // namespace emulator

inline void __syncthreads() {
    emulator::meet(emulator::blocks[emulator::current->block]);
}

inline float __shfl_xor_sync(uint32_t, float value, int distance) {
    unsigned const at = emulator::current->block * emulator::threadsInBlock + emulator::current->index;
    emulator::exchanged[at] = value;
    emulator::meet(emulator::warps[at / 32]);
    float const other = emulator::exchanged[at ^ static_cast<unsigned>(distance)];
    emulator::meet(emulator::warps[at / 32]);
    return other;
}

inline void __threadfence() {}

inline uint32_t atomicAdd(uint32_t* counter, uint32_t value) {
    uint32_t const before = *counter;
    *counter += value;
    return before;
}
