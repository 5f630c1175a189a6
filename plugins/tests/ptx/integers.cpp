// Whole numbers: wide products, logic, shifts, and picking bits and bytes.
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

// A product of twice the width, plus `c` of that width.
template <typename T, typename Wide>
void widening(Warp& w, const Instruction& i, std::uint32_t active) {
    using Bits = std::make_unsigned_t<Wide>;
    const auto product = [](T a, T b) { return static_cast<Bits>(static_cast<Wide>(a) * static_cast<Wide>(b)); };
    if (i.what.op == Op::kMultiplyAddWide) {
        each<T, T, Bits>(w, i, active, [&](T a, T b, Bits c) { return static_cast<Bits>(product(a, b) + c); });
    } else if (i.what.op == Op::kMultiplyWide) {
        each<T, T>(w, i, active, product);
    } else {
        each<T, T>(w, i, active, [&](T a, T b) { return static_cast<T>(product(a, b) >> (8 * sizeof(T))); });
    }
}

}  // namespace

// mul.hi, mul.wide and mad.wide of 16 and 32 bits; mad.lo of any.
void multiply_wide(Warp& w, const Instruction& i, std::uint32_t active) {
    if (i.what.op == Op::kMultiplyAdd) {
        return with_integer(i.what.type, [&](auto zero) {
            using T = decltype(zero);
            each<T, T, T>(w, i, active, [](T a, T b, T c) {
                return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b) +
                                      static_cast<std::uint64_t>(c));
            });
        });
    }
    switch (i.what.type) {
        case Type::kU16:
            return widening<std::uint16_t, std::uint32_t>(w, i, active);
        case Type::kS16:
            return widening<std::int16_t, std::int32_t>(w, i, active);
        case Type::kU32:
            return widening<std::uint32_t, std::uint64_t>(w, i, active);
        case Type::kS32:
            return widening<std::int32_t, std::int64_t>(w, i, active);
        default:
            unknown();
    }
}

void logic(Warp& w, const Instruction& i, std::uint32_t active) {
    const Op op = i.what.op;
    if (op == Op::kNot) {
        if (i.what.type == Type::kPred) {
            return each<std::uint64_t>(w, i, active, [](std::uint64_t a) { return std::uint64_t{a == 0}; });
        }
        return with_integer(i.what.type, [&](auto zero) {
            using T = decltype(zero);
            each<T>(w, i, active, [](T a) { return static_cast<T>(~static_cast<std::uint64_t>(a)); });
        });
    }
    const auto result = [op](std::uint64_t a, std::uint64_t b) {
        return op == Op::kAnd ? a & b : op == Op::kOr ? a | b : a ^ b;
    };
    if (i.what.type == Type::kPred) {
        return each<std::uint64_t, std::uint64_t>(w, i, active, [&](std::uint64_t a, std::uint64_t b) {
            return result(std::uint64_t{a != 0}, std::uint64_t{b != 0});
        });
    }
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T, T>(w, i, active, [&](T a, T b) {
            return static_cast<T>(result(static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b)));
        });
    });
}

// Shifts of a register's width and more give zeros, or the sign.
void shift(Warp& w, const Instruction& i, std::uint32_t active) {
    const bool left = i.what.op == Op::kShiftLeft;
    with_integer(i.what.type, [&](auto zero) {
        using T = decltype(zero);
        each<T, std::uint32_t>(w, i, active, [left](T a, std::uint32_t by) {
            constexpr std::uint32_t kBits = 8 * sizeof(T);
            if (left) {
                return static_cast<T>(by >= kBits ? 0 : static_cast<std::uint64_t>(a) << by);
            }
            return static_cast<T>(by >= kBits ? (std::is_signed_v<T> && a < 0 ? -1 : 0) : a >> by);
        });
    });
}

void extract(Warp& w, const Instruction& i, std::uint32_t active) {
    const bool is_signed = i.what.type == Type::kS32;
    if (!is_signed && i.what.type != Type::kU32) {
        unknown();
    }
    each<std::uint32_t, std::uint32_t, std::uint32_t>(
        w, i, active, [is_signed](std::uint32_t a, std::uint32_t position, std::uint32_t length) {
            if (position > 31 || length == 0 || length > 32 - position) {
                throw Fault("a field of bits outside of its register");
            }
            const std::uint32_t up = a << (32 - position - length);
            return is_signed ? static_cast<std::uint32_t>(static_cast<std::int32_t>(up) >> (32 - length)) : up >> (32 - length);
        });
}

void permute(Warp& w, const Instruction& i, std::uint32_t active) {
    each<std::uint32_t, std::uint32_t, std::uint32_t>(w, i, active, [](std::uint32_t a, std::uint32_t b, std::uint32_t which) {
        const std::uint64_t all = a | static_cast<std::uint64_t>(b) << 32;
        std::uint32_t made = 0;
        for (std::uint32_t byte = 0; byte < 4; ++byte) {
            const std::uint32_t selector = which >> (4 * byte) & 15U;
            const auto picked = static_cast<std::uint32_t>(all >> (8 * (selector & 7U))) & 255U;
            made |= ((selector & 8U) != 0 ? ((picked & 128U) != 0 ? 255U : 0U) : picked) << (8 * byte);
        }
        return made;
    });
}

}  // namespace ptx
