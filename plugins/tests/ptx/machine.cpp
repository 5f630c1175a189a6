// Blocks, warps, and what moves a warp from one instruction to the next.
#include "machine.h"

#include <algorithm>

namespace ptx {
namespace {

constexpr std::uint64_t kMostInstructions = 1'000'000'000;  // of the warps of a launch: more is taken for an endless loop

// Lanes whose predicate allows the instruction.
std::uint32_t active_lanes(const Warp& warp, const Instruction& instruction) {
    if (instruction.guard < 0) {
        return ~0U;
    }
    std::uint32_t mask = 0;
    const Column& guard = warp.columns[static_cast<std::size_t>(instruction.guard)];
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        mask |= ((guard[lane] != 0) != instruction.unless ? 1U : 0U) << lane;
    }
    return mask;
}

void shuffle(Warp& warp, const Instruction& instruction) {
    const auto constant = [&](std::size_t index) {
        return static_cast<std::uint32_t>(warp.columns[instruction.operands[index].column][0]);
    };
    if (constant(3) != kLanes - 1 || constant(4) != ~0U) {
        throw Fault("a shuffle among some lanes, which the stand-in does not know");
    }
    const Column from = warp.columns[instruction.operands[1].column];
    const Column& which = warp.columns[instruction.operands[2].column];
    Column& to = warp.columns[instruction.operands[0].column];
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        const auto number = static_cast<std::uint32_t>(which[lane]) & (kLanes - 1);
        to[lane] = from[instruction.what.op == Op::kShuffleXor ? lane ^ number : number];
    }
}

void wait_for_copies(Warp& warp, const Instruction& instruction, Block& block) {
    const std::uint64_t left = warp.columns[instruction.operands[0].column][0];
    while (warp.copies.size() - 1 > left) {
        for (const Copy& copy : warp.copies.front()) {
            block.shared.land(copy.to, copy.data.data(), copy.bytes, copy.thread);
        }
        warp.copies.erase(warp.copies.begin());
    }
}

// A product that is under way may still read and write its registers; another product may add to them.
void check_products(const Warp& warp, const Instruction& instruction) {
    if (instruction.what.op == Op::kGroupProduct) {
        return;
    }
    for (const auto& group : warp.products) {
        for (const Operand& operand : instruction.operands) {
            if (std::find(group.begin(), group.end(), operand.column) != group.end()) {
                throw Fault("a register of a product that is still under way");
            }
        }
    }
}

void wait_for_products(Warp& warp, const Instruction& instruction) {
    const std::uint64_t left = warp.columns[instruction.operands[0].column][0];
    while (warp.products.size() - 1 > left) {
        warp.products.erase(warp.products.begin());
    }
}

void step(Warp& warp, const Instruction& instruction, Block& block) {
    if (++block.counts.instructions > kMostInstructions) {
        throw Fault("no end after so many instructions");
    }
    check_products(warp, instruction);
    const std::uint32_t active = active_lanes(warp, instruction);
    const Op op = instruction.what.op;
    const bool alone = op <= Op::kCopy;
    if (!alone && active != 0 && active != ~0U) {
        throw Fault("lanes of a warp part ways at an instruction that they take together");
    }
    ++warp.next;
    if (active == 0 || execute_lanes(warp, instruction, active)) {
        return;
    }
    switch (op) {
        case Op::kBranch:
            warp.next = instruction.target;
            return;
        case Op::kReturn:
            warp.done = true;
            return;
        case Op::kBarrier:
            if (warp.columns[instruction.operands[0].column][0] != 0) {
                throw Fault("a barrier of a part of the block, which the stand-in does not know");
            }
            warp.waiting = true;
            return;
        case Op::kWarpBarrier:
            if (static_cast<std::uint32_t>(warp.columns[instruction.operands[0].column][0]) != ~0U) {
                throw Fault("a barrier of some lanes, which the stand-in does not know");
            }
            block.shared.warp_barrier(warp.index);
            return;
        case Op::kShuffleXor:
        case Op::kShuffleIndex:
            return shuffle(warp, instruction);
        case Op::kCommitCopies:
            warp.copies.emplace_back();
            return;
        case Op::kWaitCopies:
            return wait_for_copies(warp, instruction, block);
        case Op::kProxyFence:
            return block.shared.fence(warp.index);
        case Op::kCommitProducts:
            warp.products.emplace_back();
            return;
        case Op::kWaitProducts:
            return wait_for_products(warp, instruction);
        case Op::kLoadMatrices:
        case Op::kStoreMatrices:
        case Op::kMatrixProduct:
            return execute_matrices(warp, instruction, block);
        case Op::kGroupProduct:
            return execute_group_product(warp, instruction, block);
        case Op::kNothing:
            return;
        default:
            return execute_access(warp, instruction, active, block);
    }
}

// From one barrier of the block to the next, or to the end.
void run_warp(Warp& warp, const Program& program, Block& block) {
    while (!warp.done && !warp.waiting) {
        if (warp.next >= program.code.size()) {
            throw Fault("a warp runs past the kernel's end");
        }
        const Instruction& instruction = program.code[warp.next];
        try {
            step(warp, instruction, block);
        } catch (const Fault& fault) {
            throw Fault("line " + std::to_string(instruction.line) + ", warp " + std::to_string(warp.index) + ": " +
                        fault.what());
        }
    }
}

std::vector<Warp> warps_of(const Program& program, const Launch& launch, std::uint32_t block) {
    std::vector<Warp> all(launch.threads / kLanes);
    for (std::uint32_t index = 0; index < all.size(); ++index) {
        Warp& warp = all[index];
        warp.index = index;
        warp.columns.assign(program.columns, Column{});
        warp.copies.resize(1);
        warp.products.resize(1);
        for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
            warp.columns[Program::kThread][lane] = index * kLanes + lane;
        }
        warp.columns[Program::kBlock].fill(block);
        warp.columns[Program::kBlocks].fill(launch.blocks);
        for (std::size_t argument = 0; argument < launch.arguments.size(); ++argument) {
            warp.columns[Program::kFirstParameter + argument].fill(launch.arguments[argument]);
        }
        for (const auto& [column, value] : program.constants) {
            warp.columns[column].fill(value);
        }
    }
    return all;
}

void run_block(std::vector<Warp> warps, const Program& program, Block& block) {
    while (true) {
        std::size_t waiting = 0;
        for (Warp& warp : warps) {
            run_warp(warp, program, block);
            waiting += warp.waiting ? 1U : 0U;
        }
        if (waiting == 0) {
            return;
        }
        if (waiting != warps.size()) {
            throw Fault("some warps end while others wait at a barrier");
        }
        block.shared.barrier();
        for (Warp& warp : warps) {
            warp.waiting = false;
        }
    }
}

}  // namespace

Counts run(const Program& program, const Launch& launch, DeviceMemory& memory) {
    if (launch.threads == 0 || launch.threads > kMostThreads || launch.threads % kLanes != 0) {
        throw Fault("blocks of " + std::to_string(launch.threads) + " threads, which the stand-in does not know");
    }
    Counts counts;
    const std::uint32_t first = memory.begin_launch(launch.blocks);
    for (std::uint32_t number = 0; number < launch.blocks; ++number) {
        Block block{first + number, memory, SharedMemory(launch.shared_bytes), counts};
        try {
            run_block(warps_of(program, launch, number), program, block);
        } catch (const Fault& fault) {
            throw Fault(program.entry + ", block " + std::to_string(number) + ", " + fault.what());
        }
    }
    return counts;
}

}  // namespace ptx
