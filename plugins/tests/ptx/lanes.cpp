// Instructions that every lane executes by itself: arithmetic, comparisons, conversions, moves, and the list of all.
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "half.h"
#include "lanes.h"

namespace ptx {
namespace {

bool is_fp16(Type type) {
    return type == Type::kF16 || type == Type::kF16x2;
}

float float_of(std::uint16_t value, Type type) {
    return is_fp16(type) ? from_fp16(value) : from_bf16(value);
}

std::uint16_t half_of(float value, Type type) {
    return is_fp16(type) ? to_fp16(value) : to_bf16(value);
}

// Arithmetic on numbers, one or two in a register, by a function of floats. Halves are rounded from fp32: for sums and products
// that is exact enough, a fused one is rounded twice.
template <std::size_t kArity, typename F>
void floats(Warp& w, const Instruction& i, std::uint32_t active, F f) {
    const Type type = i.what.type;
    const bool narrow = type != Type::kF32 && type != Type::kF32x2;
    const std::size_t parts = type == Type::kF32 || type == Type::kF16 || type == Type::kBf16 ? 1 : 2;
    const std::size_t width = narrow ? 16 : 32;
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        if ((active >> lane & 1U) == 0) {
            continue;
        }
        std::uint64_t made = 0;
        for (std::size_t part = 0; part < parts; ++part) {
            std::array<float, kArity> values{};
            for (std::size_t index = 0; index < kArity; ++index) {
                const std::uint64_t column = w.columns[i.operands[index + 1].column][lane] >> (part * width);
                values[index] = narrow ? float_of(static_cast<std::uint16_t>(column), type) : as<float>(column);
            }
            const float result = std::apply(f, values);
            made |= std::uint64_t{narrow ? half_of(result, type) : to_bits(result)} << (part * width);
        }
        w.columns[i.operands[0].column][lane] = made;
    }
}

bool is_float(Type type) {
    return type >= Type::kF16;
}

void add_or_multiply(Warp& w, const Instruction& i, std::uint32_t active) {
    const Op op = i.what.op;
    if (is_float(i.what.type)) {
        return floats<2>(w, i, active, [op](float a, float b) {
            return op == Op::kAdd ? a + b : op == Op::kSubtract ? a - b : a * b;
        });
    }
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T, T>(w, i, active, [op](T a, T b) {
            const auto wide_a = static_cast<std::uint64_t>(a), wide_b = static_cast<std::uint64_t>(b);
            return static_cast<T>(op == Op::kAdd ? wide_a + wide_b : op == Op::kSubtract ? wide_a - wide_b : wide_a * wide_b);
        });
    });
}

void divide(Warp& w, const Instruction& i, std::uint32_t active) {
    if (i.what.type == Type::kF32 && i.what.op == Op::kDivide) {
        return each<float, float>(w, i, active, [](float a, float b) { return a / b; });
    }
    const bool rest = i.what.op == Op::kRemainder;
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T, T>(w, i, active, [rest](T a, T b) {
            if (b == 0 || (std::is_signed_v<T> && a == std::numeric_limits<T>::min() && b == static_cast<T>(-1))) {
                throw Fault("a division that has no result");
            }
            return static_cast<T>(rest ? a % b : a / b);
        });
    });
}

void smaller_or_larger(Warp& w, const Instruction& i, std::uint32_t active) {
    const bool least = i.what.op == Op::kMinimum;
    if (is_float(i.what.type)) {
        const bool keeps_nan = i.what.detail != 0;
        return floats<2>(w, i, active, [least, keeps_nan](float a, float b) {
            if (std::isnan(a) || std::isnan(b)) {
                return keeps_nan || (std::isnan(a) && std::isnan(b)) ? from_bits(kNan) : std::isnan(a) ? b : a;
            }
            // Minus zero counts as less than zero.
            const bool a_is_less = a < b || (a == b && std::signbit(a));
            return a_is_less == least ? a : b;
        });
    }
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T, T>(w, i, active, [least](T a, T b) { return (a < b) == least ? a : b; });
    });
}

void sign(Warp& w, const Instruction& i, std::uint32_t active) {
    const bool negate = i.what.op == Op::kNegate;
    if (i.what.type == Type::kF32) {
        return each<float>(w, i, active, [negate](float a) { return negate ? -a : std::fabs(a); });
    }
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T>(w, i, active, [negate](T a) {
            const bool turned = negate || (std::is_signed_v<T> && a < 0);
            return static_cast<T>(turned ? 0 - static_cast<std::uint64_t>(a) : static_cast<std::uint64_t>(a));
        });
    });
}

void select(Warp& w, const Instruction& i, std::uint32_t active) {
    each<std::uint64_t, std::uint64_t, std::uint64_t>(
        w, i, active, [](std::uint64_t a, std::uint64_t b, std::uint64_t which) { return which != 0 ? a : b; });
}

template <typename T>
std::uint64_t compared(T a, T b, Comparison comparison) {
    switch (comparison) {
        case Comparison::kEqual:
            return a == b;
        case Comparison::kUnequal:
            // That of numbers is the ordered one: false where one is NaN.
            return a < b || a > b;
        case Comparison::kLess:
            return a < b;
        case Comparison::kLessEqual:
            return a <= b;
        case Comparison::kGreater:
            return a > b;
        case Comparison::kGreaterEqual:
            return a >= b;
        default:
            // Neither is NaN; or one is.
            return (a == a && b == b) == (comparison == Comparison::kNumbers);
    }
}

void compare(Warp& w, const Instruction& i, std::uint32_t active) {
    const auto comparison = static_cast<Comparison>(i.what.detail);
    if (i.what.type == Type::kF32) {
        return each<float, float>(w, i, active, [=](float a, float b) { return compared(a, b, comparison); });
    }
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T, T>(w, i, active, [=](T a, T b) { return compared(a, b, comparison); });
    });
}

void convert(Warp& w, const Instruction& i, std::uint32_t active) {
    const Type from = i.what.type, to = i.what.to;
    if (from == Type::kF32 && (to == Type::kF16x2 || to == Type::kBf16x2)) {
        return each<float, float>(w, i, active, [to](float high, float low) {
            return half_of(low, to) | static_cast<std::uint32_t>(half_of(high, to)) << 16;
        });
    }
    if (from == Type::kF32 && (to == Type::kF16 || to == Type::kBf16)) {
        return each<float>(w, i, active, [to](float a) { return half_of(a, to); });
    }
    if (from == Type::kF32 && to == Type::kTf32) {
        return each<float>(w, i, active, to_tf32);
    }
    if ((from == Type::kF16 || from == Type::kBf16) && to == Type::kF32) {
        return each<std::uint16_t>(w, i, active, [from](std::uint16_t a) { return float_of(a, from); });
    }
    with_integer(from, [&](auto zero) {
        using From = decltype(zero);
        if (to == Type::kF32) {
            return each<From>(w, i, active, [](From a) { return static_cast<float>(a); });
        }
        with_integer(to, [&](auto made) {
            using To = decltype(made);
            each<From>(w, i, active, [](From a) { return static_cast<To>(a); });
        });
    });
}

// One register to another, to the parts of several, or several into one.
void move(Warp& w, const Instruction& i, std::uint32_t active) {
    const std::size_t heads = i.heads, tails = i.operands.size() - heads;
    const std::size_t width = 8 * bytes_of(i.what.type), part = width / heads / tails;
    const std::uint64_t mask = i.what.type == Type::kPred ? 1 : part == 64 ? ~0ULL : (1ULL << part) - 1;
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        if ((active >> lane & 1U) == 0) {
            continue;
        }
        std::uint64_t whole = 0;
        for (std::size_t index = 0; index < tails; ++index) {
            whole |= (w.columns[i.operands[heads + index].column][lane] & mask) << (index * part);
        }
        if (tails == 1) {
            whole = w.columns[i.operands[heads].column][lane];
        }
        for (std::size_t index = 0; index < heads; ++index) {
            w.columns[i.operands[index].column][lane] = tails == 1 ? whole >> (index * part) & mask : whole;
        }
    }
}

}  // namespace

bool execute_lanes(Warp& w, const Instruction& i, std::uint32_t active) {
    switch (i.what.op) {
        case Op::kMove:
            move(w, i, active);
            return true;
        case Op::kAdd:
        case Op::kSubtract:
        case Op::kMultiply:
            add_or_multiply(w, i, active);
            return true;
        case Op::kMultiplyHigh:
        case Op::kMultiplyWide:
        case Op::kMultiplyAddWide:
        case Op::kMultiplyAdd:
            multiply_wide(w, i, active);
            return true;
        case Op::kFused:
            floats<3>(w, i, active, [](float a, float b, float c) { return std::fma(a, b, c); });
            return true;
        case Op::kAddMixed:
            each<std::uint16_t, float>(w, i, active, [&i](std::uint16_t a, float b) { return float_of(a, i.what.type) + b; });
            return true;
        case Op::kDivide:
        case Op::kRemainder:
            divide(w, i, active);
            return true;
        case Op::kMinimum:
        case Op::kMaximum:
            smaller_or_larger(w, i, active);
            return true;
        case Op::kNegate:
        case Op::kAbsolute:
            sign(w, i, active);
            return true;
        case Op::kAnd:
        case Op::kOr:
        case Op::kXor:
        case Op::kNot:
            logic(w, i, active);
            return true;
        case Op::kShiftLeft:
        case Op::kShiftRight:
            shift(w, i, active);
            return true;
        case Op::kExtract:
            extract(w, i, active);
            return true;
        case Op::kPermute:
            permute(w, i, active);
            return true;
        case Op::kSelect:
            select(w, i, active);
            return true;
        case Op::kCompare:
            compare(w, i, active);
            return true;
        case Op::kConvert:
            convert(w, i, active);
            return true;
        case Op::kExponential:
            if (i.what.type != Type::kF32) {
                unknown();
            }
            each<float>(w, i, active, [](float a) { return std::exp2(a); });
            return true;
        default:
            return false;
    }
}

}  // namespace ptx
