// Loads, stores and copies, lane by lane, and what they cost.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace ptx {
namespace {

constexpr std::uint32_t kBanks = 32, kWord = 4;

std::uint64_t address_of(const Warp& warp, const Operand& operand, std::uint32_t lane, bool shared) {
    const std::uint64_t address = warp.columns[operand.column][lane] + static_cast<std::uint64_t>(operand.offset);
    return shared ? static_cast<std::uint32_t>(address) : address;
}

// An asynchronous copy of 4, 8 or 16 bytes, of which the first so many come from device memory and the others are zeros.
void copy(Warp& warp, const Instruction& instruction, std::uint32_t active, Block& block) {
    std::vector<std::uint64_t> touched, banked;
    const auto& operands = instruction.operands;
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        if ((active >> lane & 1U) == 0) {
            continue;
        }
        Copy made{address_of(warp, operands[0], lane, true),
                  warp.index * kLanes + lane,
                  static_cast<std::uint32_t>(warp.columns[operands[2].column][lane]),
                  {}};
        const auto given =
            operands.size() == 4 ? static_cast<std::uint32_t>(warp.columns[operands[3].column][lane]) : made.bytes;
        if ((made.bytes != 4 && made.bytes != 8 && made.bytes != 16) || (given != 0 && given != made.bytes) ||
            (instruction.what.detail != 0 && made.bytes != 16)) {
            throw Fault("an asynchronous copy of a size that the stand-in does not know");
        }
        if (given != 0) {
            const std::uint64_t from = address_of(warp, operands[1], lane, false);
            std::memcpy(made.data.data(), block.memory.read(from, given, block.number), given);
            touched.push_back(from);
        }
        block.shared.begin_copy(made.to, made.bytes, made.thread);
        banked.push_back(made.to);
        warp.copies.back().push_back(made);
    }
    block.memory.count(touched, false, block.number);
    count_banks(banked, warp.copies.back().back().bytes, block.counts);
}

}  // namespace

void count_banks(const std::vector<std::uint64_t>& addresses, std::size_t bytes, Counts& counts) {
    // As many lanes at a time as fill all banks once.
    const std::size_t together = kLanes * kWord / std::max<std::size_t>(bytes, kWord);
    for (std::size_t first = 0; first < addresses.size(); first += together) {
        std::vector<std::uint64_t> words;
        for (std::size_t index = first; index < std::min(first + together, addresses.size()); ++index) {
            for (std::size_t byte = 0; byte < bytes; byte += kWord) {
                words.push_back((addresses[index] + byte) / kWord);
            }
        }
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        std::uint32_t of_bank[kBanks] = {};
        for (const std::uint64_t word : words) {
            ++of_bank[word % kBanks];
        }
        counts.shared_turns += *std::max_element(of_bank, of_bank + kBanks);
        ++counts.shared_turns_least;
    }
}

void execute_access(Warp& warp, const Instruction& instruction, std::uint32_t active, Block& block) {
    const Op op = instruction.what.op;
    if (op == Op::kCopy) {
        return copy(warp, instruction, active, block);
    }
    const bool shared = op == Op::kLoadShared || op == Op::kStoreShared;
    const bool store = op == Op::kStoreGlobal || op == Op::kStoreShared;
    const std::size_t part = bytes_of(instruction.what.type), parts = instruction.operands.size() - 1, bytes = part * parts;
    const Operand& address = instruction.operands[store ? 0 : parts];
    const Operand* values = instruction.operands.data() + (store ? 1 : 0);
    if (bytes == 0 || bytes > 16) {
        throw Fault("an access of a size that the stand-in does not know");
    }
    std::vector<std::uint64_t> touched;
    touched.reserve(kLanes);
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        if ((active >> lane & 1U) == 0) {
            continue;
        }
        const std::uint64_t where = address_of(warp, address, lane, shared);
        const std::uint32_t thread = warp.index * kLanes + lane;
        std::uint8_t data[16];
        if (!store) {
            std::memcpy(data, shared ? block.shared.read(where, bytes, thread) : block.memory.read(where, bytes, block.number),
                        bytes);
        }
        for (std::size_t index = 0; index < parts; ++index) {
            std::uint64_t& value = warp.columns[values[index].column][lane];
            if (store) {
                std::memcpy(data + index * part, &value, part);
            } else {
                value = 0;
                std::memcpy(&value, data + index * part, part);
            }
        }
        if (store && shared) {
            block.shared.write(where, data, bytes, thread);
        } else if (store) {
            block.memory.write(where, data, bytes, block.number);
        }
        touched.push_back(where);
    }
    if (shared) {
        count_banks(touched, bytes, block.counts);
    } else {
        block.memory.count(touched, store, block.number);
    }
}

}  // namespace ptx
