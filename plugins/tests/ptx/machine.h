// A machine that executes PTX on the CPU, thread by thread as a GPU would: what Triton's compiler made of the kernels is run as
// it is, with every access to memory checked.
//
// What it is not: a GPU's timing, its rounding of exp and of divisions (the CPU's are better), and its races between blocks
// beyond those that memory.h sees.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

constexpr std::uint32_t kLanes = 32, kMostThreads = 1024;

struct Launch {
    std::uint32_t blocks = 1;  // one-dimensional
    std::uint32_t threads = 32;
    std::uint32_t shared_bytes = 0;
    std::vector<std::uint64_t> arguments;
};

// What was executed, in instructions of a warp.
struct Counts {
    std::uint64_t instructions = 0;
    std::uint64_t products = 0;            // of matrices, among them
    std::uint64_t shared_turns = 0;        // passes through the banks of shared memory that its accesses took
    std::uint64_t shared_turns_least = 0;  // that they would take without a conflict
};

// Runs all blocks, one after another. Throws Fault with the kernel, line, block and warp.
Counts run(const Program& program, const Launch& launch, DeviceMemory& memory);

using Column = std::array<std::uint64_t, kLanes>;

struct Copy {
    std::uint64_t to;
    std::uint32_t thread;
    std::uint32_t bytes;
    std::array<std::uint8_t, 16> data;
};

struct Warp {
    std::uint32_t index = 0;
    std::size_t next = 0;  // instruction
    bool done = false;
    bool waiting = false;  // at a barrier of the block
    std::vector<Column> columns;
    std::vector<std::vector<Copy>> copies;  // groups, the last one open
    // Of products that are under way, the columns that they read and write: groups likewise.
    std::vector<std::vector<std::uint32_t>> products;
};

// What instructions of a block share.
struct Block {
    std::uint32_t number;  // among all of all launches
    DeviceMemory& memory;
    SharedMemory shared;
    Counts& counts;
};

// One instruction of one kind, for the lanes of a mask. Throw Fault; `execute_lanes` is false for an instruction of another
// kind.
bool execute_lanes(Warp& warp, const Instruction& instruction, std::uint32_t active);
void execute_access(Warp& warp, const Instruction& instruction, std::uint32_t active, Block& block);
void execute_matrices(Warp& warp, const Instruction& instruction, Block& block);
void execute_group_product(Warp& warp, const Instruction& instruction, Block& block);

// Counts an access of a warp to shared memory, of so many bytes at each address.
void count_banks(const std::vector<std::uint64_t>& addresses, std::size_t bytes, Counts& counts);

}  // namespace ptx
