// Which operands an instruction takes.
#include <algorithm>

#include "program.h"

namespace ptx {
namespace {

// How many operands an instruction has, results included.
std::size_t operands_of(const Opcode& what) {
    const auto values = static_cast<std::size_t>(what.detail < 0 ? -what.detail : what.detail);
    switch (what.op) {
        case Op::kReturn:
        case Op::kCommitCopies:
        case Op::kCommitProducts:
        case Op::kProxyFence:
        case Op::kNothing:
            return 0;
        case Op::kWaitCopies:
        case Op::kWaitProducts:
        case Op::kBarrier:
        case Op::kWarpBarrier:
            return 1;
        case Op::kNegate:
        case Op::kAbsolute:
        case Op::kNot:
        case Op::kExponential:
            return 2;
        case Op::kConvert:
            return what.to == Type::kF16x2 || what.to == Type::kBf16x2 ? 3 : 2;
        case Op::kMultiplyAdd:
        case Op::kMultiplyAddWide:
        case Op::kFused:
        case Op::kExtract:
        case Op::kPermute:
        case Op::kSelect:
            return 4;
        case Op::kShuffleXor:
        case Op::kShuffleIndex:
            return 5;
        case Op::kLoadGlobal:
        case Op::kStoreGlobal:
        case Op::kLoadShared:
        case Op::kStoreShared:
        case Op::kLoadMatrices:
        case Op::kStoreMatrices:
            return values + 1;
        case Op::kMatrixProduct:
            return 14;
        default:
            return 3;
    }
}

bool is_store(Op op) {
    return op == Op::kStoreGlobal || op == Op::kStoreShared || op == Op::kStoreMatrices;
}

}  // namespace

bool fits(const Instruction& i) {
    using Kind = Operand::Kind;
    const Op op = i.what.op;
    const std::size_t all = i.operands.size(), tails = all - i.heads;
    if (op == Op::kMove) {
        const std::size_t parts = std::max(i.heads, tails), bytes = bytes_of(i.what.type);
        bool good = (i.heads == 1 || tails == 1) && (parts == 1 || (parts <= 4 && bytes % parts == 0 && bytes / parts >= 2));
        for (std::size_t index = 0; good && index < all; ++index) {
            // A parameter is loaded from an address.
            const Operand& one = i.operands[index];
            good =
                index < i.heads ? one.kind == Kind::kRegister : one.kind != Kind::kAddress || (parts == 1 && one.offset == 0);
        }
        return good;
    }
    const bool copy = op == Op::kCopy, store = is_store(op);
    const bool load = op == Op::kLoadGlobal || op == Op::kLoadShared || op == Op::kLoadMatrices;
    const bool counted = op == Op::kGroupProduct || (copy ? all == 3 || all == 4 : all == operands_of(i.what));
    const bool no_result = store || copy || (op >= Op::kCommitCopies && op <= Op::kProxyFence) || op >= Op::kCommitProducts;
    bool good = counted && (!load || i.heads == all - 1) && (!store || i.heads == 1);
    for (std::size_t index = 0; good && index < all; ++index) {
        const bool address = copy ? index < 2 : store ? index == 0 : load && index == all - 1;
        good = (i.operands[index].kind == Kind::kAddress) == address &&
               (no_result || index >= i.heads || i.operands[index].kind == Kind::kRegister);
    }
    return good;
}

}  // namespace ptx
