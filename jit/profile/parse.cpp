// SPDX-License-Identifier: Apache-2.0
// A profile's text to entries and back. Whatever is not known exactly is an error that names the field: a knob that a
// typing mistake left out would only show as lost time.
#include "epjit/error.hpp"
#include "epjit/jit/model.hpp"
#include "epjit/jit/profile.hpp"
#include "templates/base/types.cuh"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <set>

namespace epjit::jit {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t max_profile_bytes = 4 << 20;
constexpr std::int64_t format_version = 1;
constexpr std::size_t max_gpu_name = 128;

struct key_number {
    std::string_view name;
    std::int32_t tuning_key::*field;
    std::int32_t most;
};
constexpr key_number key_numbers[] = {
    {"ranks", &tuning_key::ranks, 1 << 15},
    {"hidden", &tuning_key::hidden, max_hidden},
    {"experts", &tuning_key::experts, templates::max_experts},
    {"topk", &tuning_key::topk, templates::max_topk},
};

struct time_field {
    std::string_view name;
    double tuning_times::*field;
};
constexpr time_field time_fields[] = {
    {"dispatch_us", &tuning_times::dispatch_us},
    {"combine_us", &tuning_times::combine_us},
    {"cost_model_dispatch_us", &tuning_times::cost_model_dispatch_us},
    {"cost_model_combine_us", &tuning_times::cost_model_combine_us},
};

std::optional<link_kind> parse_link(std::string_view text) {
    for (const link_kind kind : {link_kind::none, link_kind::pcie, link_kind::nvlink}) {
        if (name(kind) == text) {
            return kind;
        }
    }
    return std::nullopt;
}

class reader {
   public:
    explicit reader(std::string_view origin) : origin_(origin) {}

    profile read(std::string_view text) {
        const json root = parse(text);
        if (!root.is_object()) {
            refuse("the file", "an object", root);
        }
        const auto version = root.find("epjit_profile");
        if (version == root.end()) {
            throw error("it has no \"epjit_profile\", the number of its format", "write a profile with `epjit tune`");
        }
        if (!version->is_number_integer()) {
            refuse("epjit_profile", "a whole number", *version);
        }
        if (*version != format_version) {
            throw unsupported_error(fmt::format("profile {}: epjit_profile is {}, this version reads {}", origin_,
                                                version->dump(), format_version),
                                    "tune again with this version, or use the version that wrote it");
        }
        only(root, "", {"epjit_profile", "entries"});
        const auto entries = root.find("entries");
        if (entries == root.end() || !entries->is_array()) {
            refuse("entries", "an array", entries == root.end() ? json() : *entries);
        }
        profile made;
        made.source = origin_;
        for (std::size_t i = 0; i < entries->size(); ++i) {
            const std::string place = fmt::format("entries[{}]", i);
            made.entries.push_back(read_entry((*entries)[i], place));
            for (std::size_t other = 0; other < i; ++other) {
                if (made.entries[other].key == made.entries[i].key) {
                    throw error(fmt::format("{} is for the same as entries[{}]", place, other), "remove one of them");
                }
            }
        }
        return made;
    }

    [[nodiscard]] config_error error(const std::string& message, std::string remedy = {}) const {
        return config_error(fmt::format("profile {}: {}", origin_, message), std::move(remedy));
    }

   private:
    json parse(std::string_view text) const {
        // The library keeps the last of two equal keys without a word.
        std::vector<std::set<std::string>> seen;
        std::string twice;
        const auto watch = [&](int, json::parse_event_t event, json& value) {
            if (event == json::parse_event_t::object_start) {
                seen.emplace_back();
            } else if (event == json::parse_event_t::object_end) {
                seen.pop_back();
            } else if (event == json::parse_event_t::key && !seen.back().insert(value.get<std::string>()).second) {
                twice = value.get<std::string>();
            }
            return true;
        };
        json root;
        try {
            root = json::parse(text, watch);
        } catch (const json::exception& e) {
            throw error(fmt::format("it is not JSON: {}", e.what()), "write a profile with `epjit tune`");
        }
        if (!twice.empty()) {
            throw error(fmt::format("\"{}\" is there twice in one object", twice.substr(0, 60)), "remove one of them");
        }
        return root;
    }

    [[noreturn]] void refuse(const std::string& place, const std::string& expected, const json& found) const {
        std::string text = found.is_null() ? "not there" : found.dump(-1, ' ', false, json::error_handler_t::replace);
        if (text.size() > 60) {
            text = text.substr(0, 60) + "...";
        }
        throw error(fmt::format("{} is {}; expected {}", place, text, expected));
    }

    void only(const json& object, const std::string& prefix, const std::vector<std::string_view>& known) const {
        for (const auto& [key, value] : object.items()) {
            if (std::find(known.begin(), known.end(), key) == known.end()) {
                throw error(fmt::format("{}{} is not a field of this format", prefix, key.substr(0, 60)),
                            fmt::format("remove it, or correct its name; known are {}", fmt::join(known, ", ")));
            }
        }
    }

    std::int32_t number(const json& value, const std::string& place, std::int64_t least, std::int64_t most,
                        std::int64_t step = 1) const {
        const bool whole =
            value.is_number_integer() &&
            (!value.is_number_unsigned() || value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most));
        if (!whole || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most ||
            value.get<std::int64_t>() % step != 0) {
            refuse(place,
                   fmt::format("a whole number from {} to {}{}", least, most,
                               step > 1 ? fmt::format(", a multiple of {}", step) : ""),
                   value);
        }
        return value.get<std::int32_t>();
    }

    template <class Parse>
    auto text(const json& value, const std::string& place, const char* expected, Parse known) const {
        if (value.is_string()) {
            if (const auto found = known(value.get_ref<const std::string&>())) {
                return found;
            }
        }
        refuse(place, expected, value);
    }

    profile_entry read_entry(const json& object, const std::string& place) const {
        if (!object.is_object()) {
            refuse(place, "an object", object);
        }
        const std::string prefix = place + ".";
        only(object, prefix,
             {"gpu", "arch", "link", "ranks", "hidden", "experts", "topk", "input", "dispatch", "scales", "combine",
              "layout", "tokens", "knobs", "measured"});
        profile_entry entry;
        tuning_key& key = entry.key;
        const auto at = [&](std::string_view field, auto use) {
            if (const auto it = object.find(field); it != object.end()) {
                use(*it, prefix + std::string(field));
            }
        };
        at("gpu", [&](const json& v, const std::string& where) {
            if (!v.is_string() || v.get_ref<const std::string&>().empty() ||
                v.get_ref<const std::string&>().size() > max_gpu_name) {
                refuse(where, "a GPU's name", v);
            }
            key.gpu = v.get<std::string>();
        });
        at("arch", [&](const json& v, const std::string& where) {
            key.arch = text(v, where, "a target such as sm_90a", target_arch::parse);
        });
        at("link", [&](const json& v, const std::string& where) {
            key.link = text(v, where, "none, pcie or nvlink", parse_link);
        });
        for (const key_number& n : key_numbers) {
            at(n.name, [&](const json& v, const std::string& where) { key.*n.field = number(v, where, 1, n.most); });
        }
        const auto type = [](const std::string& t) { return epjit::parse<dtype>(t); };
        at("input", [&](const json& v, const std::string& where) {
            key.input = text(v, where, "bf16, fp16, f32 or fp8_e4m3", type);
        });
        at("dispatch", [&](const json& v, const std::string& where) {
            key.dispatch = text(v, where, "bf16, fp16, f32 or fp8_e4m3", type);
        });
        at("scales", [&](const json& v, const std::string& where) {
            key.scales =
                text(v, where, "none, f32 or ue8m0", [](const std::string& t) { return epjit::parse<scale_type>(t); });
        });
        at("combine", [&](const json& v, const std::string& where) {
            key.combine = text(v, where, "bf16, fp16 or f32", type);
            if (key.combine == dtype::fp8_e4m3) {
                refuse(where, "bf16, fp16 or f32", v);
            }
        });
        at("layout", [&](const json& v, const std::string& where) {
            key.layout = text(v, where, "expert_major, flat or masked",
                              [](const std::string& t) { return epjit::parse<epjit::layout>(t); });
        });
        at("tokens", [&](const json& v, const std::string& where) {
            key.tokens = number(v, where, 1, 1 << 30);
            if (!std::has_single_bit(static_cast<std::uint32_t>(key.tokens))) {
                refuse(where, "a power of two: the class of calls up to so many tokens", v);
            }
        });
        if (!object.contains("knobs")) {
            refuse(prefix + "knobs", "an object", json());
        }
        at("knobs", [&](const json& v, const std::string& where) { entry.values = read_knobs(v, where); });
        at("measured", [&](const json& v, const std::string& where) { entry.measured = read_times(v, where); });
        return entry;
    }

    knobs read_knobs(const json& object, const std::string& place) const {
        if (!object.is_object()) {
            refuse(place, "an object", object);
        }
        std::vector<std::string_view> names;
        for (const knob_info& k : knob_infos()) {
            names.push_back(k.name);
        }
        only(object, place + ".", names);
        knobs values;
        for (const knob_info& k : knob_infos()) {
            if (const auto it = object.find(k.name); it != object.end()) {
                values.*k.field = number(*it, fmt::format("{}.{}", place, k.name), k.least, k.most, k.step);
            }
        }
        return values;
    }

    tuning_times read_times(const json& object, const std::string& place) const {
        if (!object.is_object()) {
            refuse(place, "an object", object);
        }
        std::vector<std::string_view> names;
        for (const time_field& t : time_fields) {
            names.push_back(t.name);
        }
        only(object, place + ".", names);
        tuning_times times;
        for (const time_field& t : time_fields) {
            if (const auto it = object.find(t.name); it != object.end()) {
                if (!it->is_number() || it->get<double>() < 0 || !std::isfinite(it->get<double>())) {
                    refuse(fmt::format("{}.{}", place, t.name), "microseconds, 0 or more", *it);
                }
                times.*t.field = it->get<double>();
            }
        }
        return times;
    }

    std::string origin_;
};

ordered_json to_json(const profile_entry& entry) {
    ordered_json object = ordered_json::object();
    const tuning_key& key = entry.key;
    const auto put = [&object](const char* field, const auto& value) {
        if (value) {
            object[field] = name(*value);
        }
    };
    if (!key.gpu.empty()) {
        object["gpu"] = key.gpu;
    }
    if (key.arch) {
        object["arch"] = key.arch->text();
    }
    put("link", key.link);
    for (const key_number& n : key_numbers) {
        if (key.*n.field != 0) {
            object[std::string(n.name)] = key.*n.field;
        }
    }
    put("input", key.input);
    put("dispatch", key.dispatch);
    put("scales", key.scales);
    put("combine", key.combine);
    put("layout", key.layout);
    if (key.tokens != 0) {
        object["tokens"] = key.tokens;
    }
    object["knobs"] = ordered_json::object();
    for (const knob_info& k : knob_infos()) {
        if (entry.values.*k.field != 0) {
            object["knobs"][std::string(k.name)] = entry.values.*k.field;
        }
    }
    if (entry.measured != tuning_times{}) {
        object["measured"] = ordered_json::object();
        for (const time_field& t : time_fields) {
            if (entry.measured.*t.field > 0) {
                object["measured"][std::string(t.name)] = entry.measured.*t.field;
            }
        }
    }
    return object;
}

}  // namespace

std::string_view name(link_kind kind) noexcept {
    switch (kind) {
        case link_kind::none: return "none";
        case link_kind::pcie: return "pcie";
        case link_kind::nvlink: return "nvlink";
    }
    return "?";
}

profile parse_profile(std::string_view json, std::string_view origin) {
    return reader(origin).read(json);
}

profile load_profile(const std::string& path) {
    const reader r(path);
    std::ifstream file(path, std::ios::binary);
    std::string text;
    if (file) {
        text.resize(max_profile_bytes + 1);
        file.read(text.data(), static_cast<std::streamsize>(text.size()));
        text.resize(static_cast<std::size_t>(file.gcount()));
    }
    if (!file.is_open() || file.bad() || (!file.eof() && file.fail())) {
        throw r.error(fmt::format("it cannot be read: {}", std::strerror(errno)),
                      "name a file that `epjit tune` wrote, or leave the profile out");
    }
    if (text.size() > max_profile_bytes) {
        throw r.error(fmt::format("it is larger than {} bytes", max_profile_bytes), "name a profile");
    }
    return parse_profile(text, path);
}

std::string profile_text(std::span<const profile_entry> entries) {
    ordered_json root{{"epjit_profile", format_version}, {"entries", ordered_json::array()}};
    for (const profile_entry& entry : entries) {
        root["entries"].push_back(to_json(entry));
    }
    return root.dump(2) + "\n";
}

void merge_entry(profile& into, const profile_entry& fresh) {
    const auto same = std::find_if(into.entries.begin(), into.entries.end(),
                                   [&](const profile_entry& entry) { return entry.key == fresh.key; });
    if (same != into.entries.end()) {
        *same = fresh;
    } else {
        into.entries.push_back(fresh);
    }
}

}  // namespace epjit::jit
