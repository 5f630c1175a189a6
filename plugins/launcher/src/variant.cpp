#include "launcher/variant.h"

namespace aff_deploy {

std::string Variant::name() const {
    std::string text = blend ? "AttentionalFusion" : "AttentionalGate";
    text += explicit_context ? "Context" : "";
    text += local && global ? "" : local ? "Local" : "Global";
    text += silu ? "Silu" : "";
    return text + (hard_sigmoid ? "HardSigmoid" : "");
}

const std::vector<Variant>& all_variants() {
    static const std::vector<Variant> all = [] {
        std::vector<Variant> made;
        for (const bool blend : {true, false}) {
            for (const bool explicit_context : {false, true}) {
                for (const int branches : {3, 1, 2}) {
                    for (const bool silu : {false, true}) {
                        for (const bool hard : {false, true}) {
                            made.push_back({blend, explicit_context, (branches & 1) != 0, (branches & 2) != 0, silu, hard});
                        }
                    }
                }
            }
        }
        return made;
    }();
    return all;
}

}  // namespace aff_deploy
