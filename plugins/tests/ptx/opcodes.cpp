// What the words of an opcode mean. Its last word is the type of the operands, and all before must be in the table as they are.
#include <map>

#include "program.h"

namespace ptx {
namespace {

struct Kind {
    const char* name;
    Type type;
    std::size_t bytes;
};

constexpr Kind kKinds[] = {
    {"pred", Type::kPred, 1},   {"b16", Type::kB16, 2}, {"u16", Type::kU16, 2},     {"s16", Type::kS16, 2},
    {"b32", Type::kB32, 4},     {"u32", Type::kU32, 4}, {"s32", Type::kS32, 4},     {"b64", Type::kB64, 8},
    {"u64", Type::kU64, 8},     {"s64", Type::kS64, 8}, {"f16", Type::kF16, 2},     {"bf16", Type::kBf16, 2},
    {"tf32", Type::kTf32, 4},   {"f32", Type::kF32, 4}, {"f16x2", Type::kF16x2, 4}, {"bf16x2", Type::kBf16x2, 4},
    {"f32x2", Type::kF32x2, 8},
};

Type type_named(const std::string& name) {
    for (const Kind& kind : kKinds) {
        if (name == kind.name) {
            return kind.type;
        }
    }
    return Type::kNone;
}

using Table = std::map<std::string, Opcode>;

const Table& typed() {
    static const Table all = [] {
        Table made{
            {"mov", {Op::kMove}},
            {"ld.param", {Op::kMove}},
            {"add", {Op::kAdd}},
            {"add.rn", {Op::kAdd}},
            {"add.rn.f32", {Op::kAddMixed}},
            {"sub", {Op::kSubtract}},
            {"sub.rn", {Op::kSubtract}},
            {"mul", {Op::kMultiply}},
            {"mul.rn", {Op::kMultiply}},
            {"mul.lo", {Op::kMultiply}},
            {"mul.hi", {Op::kMultiplyHigh}},
            {"mul.wide", {Op::kMultiplyWide}},
            {"mad.lo", {Op::kMultiplyAdd}},
            {"mad.wide", {Op::kMultiplyAddWide}},
            {"fma.rn", {Op::kFused}},
            {"div", {Op::kDivide}},
            {"div.full", {Op::kDivide}},
            {"rem", {Op::kRemainder}},
            {"min", {Op::kMinimum}},
            {"max", {Op::kMaximum}},
            {"min.NaN", {Op::kMinimum, Type::kNone, Type::kNone, 1}},
            {"max.NaN", {Op::kMaximum, Type::kNone, Type::kNone, 1}},
            {"neg", {Op::kNegate}},
            {"abs", {Op::kAbsolute}},
            {"and", {Op::kAnd}},
            {"or", {Op::kOr}},
            {"xor", {Op::kXor}},
            {"not", {Op::kNot}},
            {"shl", {Op::kShiftLeft}},
            {"shr", {Op::kShiftRight}},
            {"bfe", {Op::kExtract}},
            {"prmt", {Op::kPermute}},
            {"selp", {Op::kSelect}},
            {"ex2.approx", {Op::kExponential}},
            {"shfl.sync.bfly", {Op::kShuffleXor}},
            {"shfl.sync.idx", {Op::kShuffleIndex}},
            {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16", {Op::kMatrixProduct, Type::kNone, Type::kF16}},
            {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16", {Op::kMatrixProduct, Type::kNone, Type::kBf16}},
            {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32", {Op::kMatrixProduct, Type::kNone, Type::kTf32}},
        };
        const std::map<std::string, Comparison> comparisons{{"eq", Comparison::kEqual},    {"ne", Comparison::kUnequal},
                                                            {"lt", Comparison::kLess},     {"le", Comparison::kLessEqual},
                                                            {"gt", Comparison::kGreater},  {"ge", Comparison::kGreaterEqual},
                                                            {"num", Comparison::kNumbers}, {"nan", Comparison::kNoNumber}};
        for (const auto& [name, comparison] : comparisons) {
            made["setp." + name] = {Op::kCompare, Type::kNone, Type::kNone, static_cast<int>(comparison)};
        }
        for (const auto& [vector, count] : {std::pair{"", 1}, std::pair{".v2", 2}, std::pair{".v4", 4}}) {
            const auto access = [&made, vector = std::string(vector), count = count](const std::string& word, Op op) {
                made[word + vector] = {op, Type::kNone, Type::kNone, count};
            };
            access("ld.global", Op::kLoadGlobal);
            access("st.global", Op::kStoreGlobal);
            access("ld.shared", Op::kLoadShared);
            access("st.shared", Op::kStoreShared);
        }
        for (const int count : {1, 2, 4}) {
            const std::string shape = "matrix.sync.aligned.m8n8.x" + std::to_string(count);
            for (const auto& [word, op] : {std::pair{"ld", Op::kLoadMatrices}, std::pair{"st", Op::kStoreMatrices}}) {
                made[word + shape + ".shared"] = {op, Type::kNone, Type::kNone, count};
                made[word + shape + ".trans.shared"] = {op, Type::kNone, Type::kNone, -count};
            }
        }
        for (int columns = 8; columns <= 256; columns += 8) {
            const std::string shape = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(columns);
            for (const char* types : {"k16.f32.f16", "k16.f32.bf16", "k8.f32.tf32"}) {
                made[shape + types] = {Op::kGroupProduct, Type::kNone, Type::kNone, columns};
            }
        }
        return made;
    }();
    return all;
}

const Table& untyped() {
    static const Table all{
        {"bra", {Op::kBranch}},
        {"bra.uni", {Op::kBranch}},
        {"ret", {Op::kReturn}},
        {"bar.sync", {Op::kBarrier}},
        {"bar.warp.sync", {Op::kWarpBarrier}},
        {"cp.async.ca.shared.global", {Op::kCopy}},
        {"cp.async.cg.shared.global", {Op::kCopy, Type::kNone, Type::kNone, 16}},
        {"cp.async.commit_group", {Op::kCommitCopies}},
        {"cp.async.wait_group", {Op::kWaitCopies}},
        {"fence.proxy.async.shared::cta", {Op::kProxyFence}},
        // Orders writes of registers before a product, which is not looked at: here a product reads them at once.
        {"wgmma.fence.sync.aligned", {Op::kNothing}},
        {"wgmma.commit_group.sync.aligned", {Op::kCommitProducts}},
        {"wgmma.wait_group.sync.aligned", {Op::kWaitProducts}},
    };
    return all;
}

std::pair<std::string, Type> split(const std::string& text) {
    const std::size_t dot = text.rfind('.');
    return dot == std::string::npos ? std::pair{text, Type::kNone}
                                    : std::pair{text.substr(0, dot), type_named(text.substr(dot + 1))};
}

}  // namespace

std::size_t bytes_of(Type type) {
    for (const Kind& kind : kKinds) {
        if (type == kind.type) {
            return kind.bytes;
        }
    }
    return 0;
}

Opcode decode(const std::string& text) {
    if (const auto found = untyped().find(text); found != untyped().end()) {
        return found->second;
    }
    const auto [words, type] = split(text);
    if (type != Type::kNone) {
        if (const auto found = typed().find(words); found != typed().end()) {
            Opcode what = found->second;
            what.type = type;
            const bool access = what.op >= Op::kLoadGlobal && what.op <= Op::kStoreShared;
            // A signed load would extend its sign into a wider register.
            if (!access || (type != Type::kPred && type != Type::kS16 && type != Type::kS32 && type != Type::kS64)) {
                return what;
            }
        }
        const auto [conversion, to] = split(words);
        const bool known = to == Type::kTf32 ? conversion == "cvt.rna" : conversion == "cvt" || conversion == "cvt.rn";
        // To a signed type narrower than the register, the sign would be extended.
        if (known && to != Type::kNone && to != Type::kS16) {
            return {Op::kConvert, type, to};
        }
    }
    throw Invalid("the stand-in does not know the instruction " + text);
}

}  // namespace ptx
