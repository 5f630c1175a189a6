// The few lines of a test framework that these tests take. Every failure is printed; the program then exits 1.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace checks {

inline int& failures() {
    static int count = 0;
    return count;
}

inline void fail(const char* file, int line, const std::string& what) {
    ++failures();
    std::printf("%s:%d: %s\n", file, line, what.c_str());
}

inline std::vector<std::pair<const char*, std::function<void()>>>& cases() {
    static std::vector<std::pair<const char*, std::function<void()>>> all;
    return all;
}

struct Case {
    Case(const char* name, std::function<void()> body) { cases().emplace_back(name, std::move(body)); }
};

// Runs every case, with `before` in front of each; the exit status of the program.
inline int run(const std::function<void()>& before = [] {}) {
    int failed = 0;
    for (const auto& [name, body] : cases()) {
        const int earlier = failures();
        try {
            before();
            body();
        } catch (const std::exception& error) {
            fail(name, 0, std::string("threw ") + error.what());
        }
        failed += failures() > earlier ? 1 : 0;
        std::printf("%s %s\n", failures() > earlier ? "FAILED" : "passed", name);
    }
    std::printf("%d passed, %d failed\n", static_cast<int>(cases().size()) - failed, failed);
    return failed == 0 ? 0 : 1;
}

}  // namespace checks

#define TEST(name)                                            \
    static void name();                                       \
    static const checks::Case registered_##name(#name, name); \
    static void name()
#define CHECK(condition)                                  \
    do {                                                  \
        if (!(condition)) {                               \
            checks::fail(__FILE__, __LINE__, #condition); \
        }                                                 \
    } while (false)
// The expression throws what is named, with a message that contains the text.
#define CHECK_THROWS(kind, expression, text)                                        \
    do {                                                                            \
        std::string said = "(nothing thrown)";                                      \
        bool thrown = false;                                                        \
        try {                                                                       \
            static_cast<void>(expression);                                          \
        } catch (const kind& error) {                                               \
            said = error.what();                                                    \
            thrown = true;                                                          \
        }                                                                           \
        if (!thrown || said.find(text) == std::string::npos) {                      \
            checks::fail(__FILE__, __LINE__, std::string(#expression ": ") + said); \
        }                                                                           \
    } while (false)
#define CHECK_ERROR(expression, text) CHECK_THROWS(aff_deploy::Error, expression, text)
