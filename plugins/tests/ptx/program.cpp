// The reader: a module's text to its kernels' instructions.
#include "program.h"

#include <cctype>
#include <cstdlib>
#include <map>
#include <set>

namespace ptx {
namespace {

constexpr std::size_t kMostRegisters = 1U << 16;

std::string without_comments(std::string text) {
    for (std::size_t at = text.find('/'); at < text.size(); at = text.find('/', at + 1)) {
        const bool block = text.compare(at, 2, "/*") == 0;
        if (!block && text.compare(at, 2, "//") != 0) {
            continue;
        }
        const std::size_t last = block ? text.find("*/", at + 2) : text.find('\n', at);
        const std::size_t end = last == std::string::npos ? text.size() : last + (block ? 2 : 0);
        for (std::size_t index = at; index < end; ++index) {
            text[index] = text[index] == '\n' ? '\n' : ' ';
        }
    }
    return text;
}

std::string trimmed(const std::string& text) {
    const std::size_t begin = text.find_first_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

bool in_name(char letter) {
    return std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '_' || letter == '$';
}

class Reader {
  public:
    explicit Reader(const std::string& text) : text_(without_comments(text)) {}

    std::vector<Program> modules() {
        if (text_.find(".version") == std::string::npos) {
            throw Invalid("no .version");
        }
        for (const char* unknown : {".func", ".const", ".tex"}) {
            if (text_.find(std::string(unknown) + " ") != std::string::npos) {
                throw Invalid(std::string("the stand-in does not know ") + unknown);
            }
        }
        const auto [capability, specific] = target();
        std::vector<Program> all;
        for (at_ = text_.find(".entry"); at_ != std::string::npos; at_ = text_.find(".entry", at_)) {
            at_ += 6;
            all.push_back(kernel());
            all.back().capability = capability;
            all.back().specific = specific;
        }
        if (all.empty()) {
            throw Invalid("no kernel");
        }
        return all;
    }

  private:
    // .target sm_90a
    std::pair<int, bool> target() {
        const std::size_t found = text_.find(".target");
        if (found == std::string::npos) {
            throw Invalid("no .target");
        }
        at_ = found + 7;
        const std::string name = until("\n");
        char* end = nullptr;
        const long number = name.rfind("sm_", 0) == 0 ? std::strtol(name.c_str() + 3, &end, 10) : 0;
        const std::string rest = end == nullptr ? "" : end;
        if (number < 50 || number > 999 || (!rest.empty() && rest != "a")) {
            throw Invalid("a target that the stand-in does not know: " + name);
        }
        return {static_cast<int>(number), !rest.empty()};
    }

    std::string until(const char* ends) {
        const std::size_t begin = at_;
        at_ = text_.find_first_of(ends, at_);
        if (at_ == std::string::npos) {
            throw Invalid("the text breaks off");
        }
        return trimmed(text_.substr(begin, at_++ - begin));
    }

    // Of the statement that is being read.
    std::size_t line() {
        for (; counted_ < statement_; ++counted_) {
            line_ += text_[counted_] == '\n' ? 1 : 0;
        }
        return line_;
    }

    [[noreturn]] void refuse(const std::string& what) { throw Invalid("line " + std::to_string(line()) + ": " + what); }

    Program kernel() {
        program_ = {};
        names_ = {{"%tid.x", Program::kThread}, {"%ctaid.x", Program::kBlock}, {"%nctaid.x", Program::kBlocks}};
        labels_.clear();
        writable_.clear();
        branches_.clear();
        program_.columns = Program::kFirstParameter;
        statement_ = at_;
        program_.entry = until("(");
        const std::string parameters = until(")");
        for (std::size_t begin = 0; begin < parameters.size();) {
            const std::size_t end = std::min(parameters.find(',', begin), parameters.size());
            parameter(trimmed(parameters.substr(begin, end - begin)));
            begin = end + 1;
        }
        const std::string directives = until("{");
        if (const std::size_t found = directives.find(".reqntid"); found != std::string::npos) {
            char* end = nullptr;
            program_.threads = static_cast<unsigned int>(std::strtoul(directives.c_str() + found + 8, &end, 10));
            if (*end == ',') {
                refuse("blocks of more than one dimension, which the stand-in does not know");
            }
        }
        body();
        return std::move(program_);
    }

    void parameter(const std::string& text) {
        const std::size_t name = text.find_last_of(" \t") + 1;
        const bool wide = text.find("64") < name && text.find("64") != std::string::npos;
        const bool narrow = text.find("32") < name && text.find("32") != std::string::npos;
        if (text.rfind(".param", 0) != 0 || wide == narrow) {
            refuse("a parameter that the stand-in does not know: " + text);
        }
        program_.parameter_bytes.push_back(wide ? 8 : 4);
        names_[text.substr(name)] = column();
    }

    std::uint32_t column() { return static_cast<std::uint32_t>(program_.columns++); }

    void body() {
        while (true) {
            at_ = text_.find_first_not_of(" \t\r\n", at_);
            if (at_ == std::string::npos) {
                refuse("the text breaks off");
            }
            statement_ = at_;
            if (text_[at_] == '}') {
                break;
            }
            std::size_t end = at_;
            while (end < text_.size() && in_name(text_[end])) {
                ++end;
            }
            if (end > at_ && text_.compare(end, 1, ":") == 0) {
                if (!labels_.emplace(text_.substr(at_, end - at_), program_.code.size()).second) {
                    refuse("a label that is there twice");
                }
                at_ = end + 1;
            } else if (text_[at_] == '{') {
                refuse("the stand-in does not know blocks inside a kernel");
            } else {
                statement(until(";"));
            }
        }
        for (const auto& [index, label] : branches_) {
            const auto found = labels_.find(label);
            if (found == labels_.end()) {
                refuse("no label " + label);
            }
            program_.code[index].target = found->second;
        }
    }

    void statement(const std::string& text) {
        if (text.rfind(".reg", 0) == 0) {
            registers(text);
        } else if (text.rfind(".pragma", 0) != 0) {
            instruction(text);
        }
    }

    // .reg .b32 %r<183>
    void registers(const std::string& text) {
        const std::size_t name = text.find('%'), open = text.find('<');
        if (name == std::string::npos || open == std::string::npos || open < name) {
            refuse("registers that the stand-in does not know: " + text);
        }
        const std::size_t count = std::strtoul(text.c_str() + open + 1, nullptr, 10);
        if (count + program_.columns > kMostRegisters) {
            refuse("too many registers");
        }
        for (std::size_t index = 0; index < count; ++index) {
            if (!names_.emplace(text.substr(name, open - name) + std::to_string(index), column()).second) {
                refuse("a register that is there twice");
            }
            writable_.insert(static_cast<std::uint32_t>(program_.columns - 1));
        }
    }

    void instruction(std::string text) {
        Instruction made;
        if (text[0] == '@') {
            const std::size_t end = text.find_first_of(" \t");
            made.unless = text.size() > 1 && text[1] == '!';
            made.guard = named(text.substr(made.unless ? 2 : 1, end - (made.unless ? 2 : 1))).column;
            text = trimmed(end == std::string::npos ? "" : text.substr(end));
        }
        const std::size_t end = std::min(text.find_first_of(" \t"), text.size());
        try {
            made.what = decode(text.substr(0, end));
        } catch (const Invalid& error) {
            refuse(error.what());
        }
        const std::string operands = trimmed(text.substr(end));
        if (made.what.op == Op::kBranch) {
            branches_.emplace_back(program_.code.size(), operands);
        } else {
            read_operands(operands, made);
            if (!fits(made)) {
                refuse("other operands than the instruction takes: " + text);
            }
        }
        made.line = line();
        program_.code.push_back(std::move(made));
    }

    // Groups in braces, addresses in brackets, names and numbers, between commas.
    void read_operands(const std::string& text, Instruction& made) {
        for (std::size_t at = 0; at < text.size();) {
            const char first = text[at];
            if (first == ',' || std::isspace(static_cast<unsigned char>(first)) != 0) {
                ++at;
                continue;
            }
            const bool group = first == '{', address = first == '[';
            const std::size_t begin = group || address ? at + 1 : at;
            const std::size_t end = text.find_first_of(group ? "}" : address ? "]" : ",", begin);
            if (end == std::string::npos && (group || address)) {
                refuse("a bracket is not closed");
            }
            const std::string inner = trimmed(text.substr(begin, end == std::string::npos ? end : end - begin));
            if (group) {
                for (std::size_t item = 0; item < inner.size();) {
                    const std::size_t comma = std::min(inner.find(',', item), inner.size());
                    made.operands.push_back(named(trimmed(inner.substr(item, comma - item))));
                    item = comma + 1;
                }
            } else {
                made.operands.push_back(address ? read_address(inner) : named(inner));
            }
            made.heads = made.heads == 0 ? made.operands.size() : made.heads;
            at = end == std::string::npos ? text.size() : end + (group || address ? 1 : 0);
        }
    }

    // %rd5, %rd5+16, %rd5 + 16
    Operand read_address(const std::string& text) {
        const std::size_t plus = text.find('+');
        Operand made = named(trimmed(text.substr(0, plus)));
        made.kind = Operand::Kind::kAddress;
        made.offset = plus == std::string::npos ? 0 : static_cast<std::int64_t>(number(trimmed(text.substr(plus + 1))));
        return made;
    }

    Operand named(const std::string& name) {
        if (const auto found = names_.find(name); found != names_.end()) {
            return {found->second, writable_.count(found->second) != 0 ? Operand::Kind::kRegister : Operand::Kind::kValue};
        }
        const std::uint32_t made = names_[name] = column();
        if (name == "_") {
            writable_.insert(made);
            return {made};
        }
        // The only shared memory that kernels have is dynamic and starts at 0.
        program_.constants.emplace_back(made, name == "global_smem" ? 0 : number(name));
        return {made, Operand::Kind::kValue};
    }

    // 12, -12, 0x1F, 0x1FU, 0f3F800000 (the bits of a float)
    std::uint64_t number(std::string text) {
        const std::string said = text;
        const bool real = text.rfind("0f", 0) == 0, hexadecimal = real || text.rfind("0x", 0) == 0;
        const bool negative = text.rfind('-', 0) == 0;
        text = text.substr(hexadecimal ? 2 : negative ? 1 : 0);
        if (!real && !text.empty() && text.back() == 'U') {
            text.pop_back();
        }
        const bool octal = !hexadecimal && text.size() > 1 && text[0] == '0';
        const bool digits = text.find_first_not_of(hexadecimal ? "0123456789abcdefABCDEF" : "0123456789") == std::string::npos;
        if (text.empty() || text.size() > 20 || octal || !digits || (real && text.size() != 8)) {
            refuse("an operand that the stand-in does not know: " + said);
        }
        const std::uint64_t value = std::strtoull(text.c_str(), nullptr, hexadecimal ? 16 : 10);
        return negative ? 0 - value : value;
    }

    std::string text_;
    std::size_t at_ = 0;
    std::size_t statement_ = 0;
    std::size_t counted_ = 0;
    std::size_t line_ = 1;
    Program program_;
    std::map<std::string, std::uint32_t> names_;
    std::set<std::uint32_t> writable_;  // columns of registers
    std::map<std::string, std::size_t> labels_;
    std::vector<std::pair<std::size_t, std::string>> branches_;
};

}  // namespace

std::vector<Program> read(const std::string& text) {
    return Reader(text).modules();
}

}  // namespace ptx
