#include "launcher/ptx.h"

#include <algorithm>
#include <cctype>
#include <cstddef>

#include "launcher/error.h"

namespace aff_deploy::cuda {
namespace {

bool in_word(char letter) {
    return std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '_' || letter == '$' || letter == '.';
}

// Words of PTX from `at` on: identifiers and directives with their dots, strings as a whole, any other character alone. No
// comments.
std::string next_word(const std::string& text, std::size_t& at) {
    while (at < text.size()) {
        if (std::isspace(static_cast<unsigned char>(text[at])) != 0) {
            ++at;
        } else if (text.compare(at, 2, "//") == 0) {
            at = std::min(text.find('\n', at), text.size());
        } else if (text.compare(at, 2, "/*") == 0) {
            const std::size_t end = text.find("*/", at + 2);
            at = end == std::string::npos ? text.size() : end + 2;
        } else {
            break;
        }
    }
    const std::size_t begin = at;
    while (at < text.size() && in_word(text[at])) {
        ++at;
    }
    if (at == begin && at < text.size()) {
        at = text[at] == '"' ? std::min(text.find('"', at + 1), text.size() - 1) + 1 : at + 1;
    }
    return text.substr(begin, at - begin);
}

// Behind the entry's name; throws if there is none.
std::size_t behind_entry(const std::string& ptx, const std::string& entry) {
    // Word by word, as the driver reads it: what stands in a comment is no kernel.
    std::size_t at = 0;
    for (std::string word = next_word(ptx, at); !word.empty(); word = next_word(ptx, at)) {
        if (word == ".entry" && next_word(ptx, at) == entry) {
            return at;
        }
    }
    throw Error("the PTX has no kernel " + entry);
}

}  // namespace

std::vector<std::string> entry_parameters(const std::string& ptx, const std::string& entry) {
    std::size_t at = behind_entry(ptx, entry);
    std::vector<std::string> types;
    if (next_word(ptx, at) != "(") {
        return types;
    }
    bool in_parameter = false;
    for (std::string word = next_word(ptx, at); word != ")"; word = next_word(ptx, at)) {
        require(!word.empty(), [&] { return "the PTX breaks off in the parameters of " + entry; });
        if (word == ".param") {
            in_parameter = true;
        } else if (in_parameter && word[0] == '.' && word != ".align" && word.size() > 1) {
            types.push_back(word.substr(1));
            in_parameter = false;
        } else if (word == "[") {
            throw Error("a parameter of the kernel " + entry + " is an array");
        }
    }
    return types;
}

unsigned int required_threads(const std::string& ptx, const std::string& entry) {
    std::size_t at = behind_entry(ptx, entry);
    for (std::string word = next_word(ptx, at); !word.empty() && word != "{" && word != ";"; word = next_word(ptx, at)) {
        if (word != ".reqntid") {
            continue;
        }
        unsigned int threads = 1;
        for (std::string size = next_word(ptx, at); !size.empty(); size = next_word(ptx, at)) {
            unsigned int value = 0;
            for (const char digit : size) {
                require(digit >= '0' && digit <= '9' && value < 100000,
                        [&] { return "the PTX of " + entry + " has a strange .reqntid"; });
                value = 10 * value + static_cast<unsigned int>(digit - '0');
            }
            require(value > 0 && value <= 1024, [&] { return "the PTX of " + entry + " has a strange .reqntid"; });
            threads *= value;
            require(threads <= 1024, [&] { return "the PTX of " + entry + " has a strange .reqntid"; });
            const std::size_t before = at;
            if (next_word(ptx, at) != ",") {
                at = before;
                break;
            }
        }
        return threads;
    }
    return 0;
}

}  // namespace aff_deploy::cuda
