// One lane after another: how an instruction's operands are read and its result is written.
#pragma once

#include <cstring>
#include <utility>

#include "machine.h"

namespace ptx {

template <typename T>
T as(std::uint64_t column) {
    T value{};
    std::memcpy(&value, &column, sizeof value);  // the low bytes: little endian
    return value;
}

template <typename T>
std::uint64_t bits(T value) {
    std::uint64_t column = 0;
    std::memcpy(&column, &value, sizeof value);
    return column;
}

[[noreturn]] inline void unknown() {
    throw Fault("the stand-in does not know the instruction for this type");
}

// One lane after another: `f` of the operands behind the first, read as `Args`; the first takes the result.
template <typename... Args, typename F, std::size_t... I>
void each_of(Warp& warp, const Instruction& i, std::uint32_t active, F f, std::index_sequence<I...>) {
    const Column* from[] = {&warp.columns[i.operands[I + 1].column]...};
    Column& to = warp.columns[i.operands[0].column];
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        if ((active >> lane & 1U) != 0) {
            to[lane] = bits(f(as<Args>((*from[I])[lane])...));
        }
    }
}

template <typename... Args, typename F>
void each(Warp& warp, const Instruction& i, std::uint32_t active, F f) {
    each_of<Args...>(warp, i, active, f, std::index_sequence_for<Args...>{});
}

// Calls `f` with a zero of the C++ type of a whole number.
template <typename F>
void with_integer(Type type, F f) {
    switch (type) {
        case Type::kB16:
        case Type::kU16:
            return f(std::uint16_t{});
        case Type::kS16:
            return f(std::int16_t{});
        case Type::kB32:
        case Type::kU32:
            return f(std::uint32_t{});
        case Type::kS32:
            return f(std::int32_t{});
        case Type::kB64:
        case Type::kU64:
            return f(std::uint64_t{});
        case Type::kS64:
            return f(std::int64_t{});
        default:
            unknown();
    }
}

// integers.cpp: mul.hi, mul.wide, mad.lo, mad.wide; and, or, xor, not; shl, shr; bfe; prmt.
void multiply_wide(Warp& w, const Instruction& i, std::uint32_t active);
void logic(Warp& w, const Instruction& i, std::uint32_t active);
void shift(Warp& w, const Instruction& i, std::uint32_t active);
void extract(Warp& w, const Instruction& i, std::uint32_t active);
void permute(Warp& w, const Instruction& i, std::uint32_t active);

}  // namespace ptx
