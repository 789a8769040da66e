// SPDX-License-Identifier: Apache-2.0
// Hugging Face config.json -> MoE shape. The families name the same three numbers differently, nest them in sections,
// or give one value a layer; whatever cannot be told for sure is an error that says what was looked for and what was
// found.
#include "epjit/error.hpp"
#include "epjit/jit/model.hpp"
#include "templates/base/types.cuh"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

namespace epjit::jit {
namespace {

using nlohmann::json;

constexpr std::size_t max_config_bytes = 16 << 20;

/// Sections that hold the language model of a model with several parts; tried before the top level, which in such
/// files describes another part or nothing.
constexpr std::string_view language_sections[] = {"text_config",    "language_config", "llm_config",
                                                  "thinker_config", "language_model",  "decoder"};
/// Sections that hold a layer's feed-forward part.
constexpr std::string_view layer_sections[] = {"ffn_config", "moe_config", "moe"};

/// One number under its many names. Names after `weak` mean it only when no other name is there: `top_k` is also a
/// sampling parameter in older files, `n_embd` and `dim` are rare.
struct quantity {
    std::string_view what;
    std::vector<std::string_view> names;
    std::size_t weak;
    bool uniform;  ///< a list with one per layer must hold one value only
};

const quantity& experts_quantity() {
    static const quantity q{"number of experts",
                            {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts",
                             "num_routed_experts", "moe_num_primary_experts", "n_experts", "num_moe_experts"},
                            8,
                            false};
    return q;
}

const quantity& topk_quantity() {
    static const quantity q{
        "experts per token",
        {"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_topk", "moe_k",
         "moe_router_topk", "num_selected_experts", "n_activated_experts", "moe_num_active_primary_experts",
         "router_top_k", "top_k_experts", "num_experts_top_k", "top_k", "topk"},
        13,
        false};
    return q;
}

const quantity& hidden_quantity() {
    static const quantity q{"hidden size", {"hidden_size", "d_model", "model_dim", "n_embd", "dim"}, 3, true};
    return q;
}

/// A value that a file gives, with the place it was found: "text_config.num_experts".
struct found_value {
    std::int64_t value = 0;
    std::string place;
};

class reader {
   public:
    reader(const json& root, std::string_view origin) : root_(root), origin_(origin) {}

    model_shape read() const;

   private:
    struct section {
        const json* object = nullptr;
        std::string prefix;  ///< "text_config."
    };

    [[nodiscard]] config_error error(const std::string& message, std::string remedy = {}) const {
        return config_error(fmt::format("model config {}: {}", origin_, message), std::move(remedy));
    }

    void collect(const json& object, const std::string& prefix, int depth, std::vector<section>& sections) const;
    [[nodiscard]] std::optional<found_value> find(const section& in, const quantity& q) const;
    [[nodiscard]] std::optional<found_value> find_near(const section& in, const quantity& q) const;
    [[nodiscard]] std::optional<std::int64_t> number(const json& value, const std::string& place, bool uniform) const;
    [[nodiscard]] dtype token_type(const section& in, bool& fp8) const;
    void read_quantization(const section& in, model_shape& shape) const;
    [[nodiscard]] const json* member(const section& in, const char* key, std::string& place) const;
    [[nodiscard]] std::string what_was_found() const;
    void check_range(const found_value& v, std::string_view what, std::int64_t high) const;

    const json& root_;
    std::string_view origin_;
};

std::string excerpt(const json& value) {
    std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    return text.size() > 60 ? text.substr(0, 60) + "..." : text;
}

/// Language sections first, deepest first, each before the section that holds it; the top level last.
void reader::collect(const json& object, const std::string& prefix, int depth, std::vector<section>& sections) const {
    for (const std::string_view name : language_sections) {
        const auto it = object.find(name);
        if (it != object.end() && it->is_object() && depth < 4) {
            collect(*it, fmt::format("{}{}.", prefix, name), depth + 1, sections);
        }
    }
    sections.push_back({&object, prefix});
}

/// A number, or the largest of a list with one per layer: its kernels serve the layers with fewer as well. Null, and
/// the zeros of dense layers, say nothing.
std::optional<std::int64_t> reader::number(const json& value, const std::string& place, bool uniform) const {
    const auto integer = [&](const json& v) -> std::int64_t {
        if (v.is_number_unsigned() && v.get<std::uint64_t>() > std::uint64_t{1} << 62) {
            throw error(fmt::format("{} is {}, which is no sensible size", place, excerpt(v)));
        }
        if (!v.is_number_integer()) {
            throw error(fmt::format("{} is {} ({}), not an integer{}", place, excerpt(v), v.type_name(),
                                    value.is_array() ? " in every layer" : ""));
        }
        const auto n = v.get<std::int64_t>();
        if (n < 0) {
            throw error(fmt::format("{} is {}, which is negative", place, n));
        }
        return n;
    };
    if (value.is_null()) {
        return std::nullopt;
    }
    if (!value.is_array()) {
        return integer(value);
    }
    std::optional<std::int64_t> largest;
    for (const json& layer : value) {
        if (layer.is_null()) {
            continue;
        }
        const std::int64_t n = integer(layer);
        if (uniform && largest && *largest != n) {
            throw error(fmt::format("{} is {}: it must be the same in every layer", place, excerpt(value)));
        }
        largest = std::max(largest.value_or(0), n);
    }
    return largest;
}

std::optional<found_value> reader::find(const section& in, const quantity& q) const {
    std::optional<found_value> found;
    for (std::size_t i = 0; i < q.names.size(); ++i) {
        if (i >= q.weak && found) {
            break;
        }
        const auto it = in.object->find(q.names[i]);
        if (it == in.object->end()) {
            continue;
        }
        std::string place = fmt::format("{}{}", in.prefix, q.names[i]);
        const auto value = number(*it, place, q.uniform);
        if (!value || (*value == 0 && found)) {
            continue;
        }
        if (found && found->value != 0 && found->value != *value) {
            throw error(fmt::format("{} is {} but {} is {}: two values for the {}", found->place, found->value, place,
                                    *value, q.what),
                        "remove the wrong one");
        }
        found = {*value, std::move(place)};
    }
    return found;
}

/// In the section's feed-forward part, then in the section itself.
std::optional<found_value> reader::find_near(const section& in, const quantity& q) const {
    for (const std::string_view name : layer_sections) {
        const auto it = in.object->find(name);
        if (it != in.object->end() && it->is_object()) {
            if (auto found = find({&*it, fmt::format("{}{}.", in.prefix, name)}, q)) {
                return found;
            }
        }
    }
    return find(in, q);
}

/// The keys that a reader would look at first, for messages.
std::string reader::what_was_found() const {
    std::vector<std::string> parts;
    const auto add = [&](const section& in) {
        for (const std::string_view key : {"model_type", "architectures"}) {
            if (const auto it = in.object->find(key); it != in.object->end()) {
                parts.push_back(fmt::format("{}{} = {}", in.prefix, key, excerpt(*it)));
            }
        }
        for (const quantity* q : {&hidden_quantity(), &experts_quantity(), &topk_quantity()}) {
            for (const std::string_view key : q->names) {
                if (const auto it = in.object->find(key); it != in.object->end()) {
                    parts.push_back(fmt::format("{}{} = {}", in.prefix, key, excerpt(*it)));
                }
            }
        }
    };
    std::vector<section> sections;
    collect(root_, "", 0, sections);
    for (const section& in : sections) {
        add(in);
        for (const std::string_view name : layer_sections) {
            if (const auto it = in.object->find(name); it != in.object->end() && it->is_object()) {
                add({&*it, fmt::format("{}{}.", in.prefix, name)});
            }
        }
    }
    if (!parts.empty()) {
        return fmt::format("{}", fmt::join(parts, ", "));
    }
    std::vector<std::string> keys;
    for (const auto& [key, value] : root_.items()) {
        if (keys.size() < 8) {
            keys.push_back(key.substr(0, 40));
        }
    }
    return keys.empty() ? "no key at all" : fmt::format("only keys like {}", fmt::join(keys, ", "));
}

const json* reader::member(const section& in, const char* key, std::string& place) const {
    for (const section& where : {in, section{&root_, ""}}) {
        const auto it = where.object->find(key);
        if (it != where.object->end() && !it->is_null()) {
            place = where.prefix + key;
            return &*it;
        }
    }
    return nullptr;
}

dtype reader::token_type(const section& in, bool& fp8) const {
    std::string place;
    const json* value = member(in, "dtype", place);
    if (value == nullptr) {
        value = member(in, "torch_dtype", place);
    }
    if (value == nullptr) {
        return dtype::bf16;
    }
    if (!value->is_string()) {
        throw error(fmt::format("{} is {} ({}), not a type's name", place, excerpt(*value), value->type_name()));
    }
    std::string name = value->get<std::string>();
    if (name.starts_with("torch.")) {
        name.erase(0, 6);
    }
    if (name == "bfloat16" || name == "bf16" || name == "auto") {
        return dtype::bf16;
    }
    if (name == "float16" || name == "half" || name == "fp16") {
        return dtype::fp16;
    }
    if (name == "float32" || name == "float" || name == "fp32") {
        return dtype::f32;
    }
    if (name == "float8_e4m3fn") {
        fp8 = true;  // of the weights; activations are bf16 before they are quantised
        return dtype::bf16;
    }
    throw error(
        fmt::format("{} is \"{}\"; known are bfloat16, float16, float32 and float8_e4m3fn", place, name.substr(0, 60)));
}

/// `fp8` with blocks of 128 columns (or of unstated size), or the same as compressed-tensors puts it. Other methods
/// quantise in ways that do not show between dispatch and combine.
void reader::read_quantization(const section& in, model_shape& shape) const {
    std::string place;
    const json* config = member(in, "quantization_config", place);
    if (config == nullptr) {
        return;
    }
    if (!config->is_object()) {
        throw error(fmt::format("{} is {} ({}), not an object", place, excerpt(*config), config->type_name()));
    }
    const auto text = [&](const char* key) -> std::string {
        const auto it = config->find(key);
        if (it == config->end() || it->is_null()) {
            return {};
        }
        if (!it->is_string()) {
            throw error(fmt::format("{}.{} is {} ({}), not a string", place, key, excerpt(*it), it->type_name()));
        }
        return it->get<std::string>();
    };
    const auto block_columns = [&](const json& holder, const char* key, const std::string& at) -> std::int64_t {
        const auto it = holder.find(key);
        if (it == holder.end() || it->is_null()) {
            return 0;
        }
        if (!it->is_array() || it->size() != 2 || !(*it)[0].is_number_integer() || !(*it)[1].is_number_integer()) {
            throw error(fmt::format("{}.{} is {}, not two integers", at, key, excerpt(*it)));
        }
        return (*it)[1].get<std::int64_t>();
    };
    const std::string method = text("quant_method");
    if (method == "fp8") {
        const std::int64_t columns = block_columns(*config, "weight_block_size", place);
        shape.fp8_dispatch = columns == 0 || columns == templates::scale_group;
    } else if (method == "compressed-tensors") {
        const auto groups = config->find("config_groups");
        if (groups != config->end() && groups->is_object()) {
            for (const auto& [name, group] : groups->items()) {
                const auto weights = group.is_object() ? group.find("weights") : group.end();
                if (!group.is_object() || weights == group.end() || !weights->is_object()) {
                    continue;
                }
                const bool is_fp8 =
                    weights->value("type", json()) == "float" && weights->value("num_bits", json()) == 8;
                const std::string at = fmt::format("{}.config_groups.{}.weights", place, name);
                if (is_fp8 && block_columns(*weights, "block_structure", at) == templates::scale_group) {
                    shape.fp8_dispatch = true;
                }
            }
        }
    }
    if (shape.fp8_dispatch && text("scale_fmt") == "ue8m0") {
        shape.fp8_scales = scale_type::ue8m0;
    }
}

void reader::check_range(const found_value& v, std::string_view what, std::int64_t high) const {
    if (v.value < 1 || v.value > high) {
        throw error(fmt::format("{} is {}; the {} must be 1 to {}", v.place, v.value, what, high));
    }
}

model_shape reader::read() const {
    std::vector<section> sections;
    collect(root_, "", 0, sections);
    const section* language = nullptr;
    std::optional<found_value> experts;
    for (const section& candidate : sections) {
        auto found = find_near(candidate, experts_quantity());
        // One expert is how some dense models say that they are dense.
        if (found && found->value > 1) {
            experts = std::move(found);
            language = &candidate;
            break;
        }
    }
    if (language == nullptr) {
        throw error(fmt::format("it describes no mixture of experts: looked for a number of experts above 1 under {}; "
                                "found {}",
                                fmt::join(experts_quantity().names, ", "), what_was_found()),
                    "a dense model has nothing to exchange; pass the config.json of an MoE model");
    }
    const section top{&root_, ""};
    const auto need = [&](const quantity& q) {
        auto found = find_near(*language, q);
        if (!found && language->object != &root_) {
            found = find_near(top, q);
        }
        if (!found) {
            throw error(
                fmt::format("no {}: looked for {}; found {}", q.what, fmt::join(q.names, ", "), what_was_found()));
        }
        return *found;
    };
    const found_value topk = need(topk_quantity());
    const found_value hidden = need(hidden_quantity());
    check_range(hidden, "hidden size", max_hidden);
    check_range(*experts, "number of experts", templates::max_experts);
    if (topk.value > experts->value) {
        throw error(fmt::format("{} is {} but {} is {}: a token cannot choose more experts than there are", topk.place,
                                topk.value, experts->place, experts->value));
    }
    check_range(topk, "number of experts per token", templates::max_topk);

    model_shape shape;
    shape.hidden = static_cast<std::int32_t>(hidden.value);
    shape.num_experts = static_cast<std::int32_t>(experts->value);
    shape.topk = static_cast<std::int32_t>(topk.value);
    shape.token_type = token_type(*language, shape.fp8_dispatch);
    read_quantization(*language, shape);
    shape.source = origin_;
    std::string place;
    for (const char* key : {"_name_or_path", "model_type"}) {
        const json* name = member(*language, key, place);
        if (name != nullptr && name->is_string() && !name->get<std::string>().empty()) {
            shape.name = name->get<std::string>();
            break;
        }
    }
    if (shape.name.empty()) {
        shape.name = std::filesystem::path(origin_).stem().string();
    }
    return shape;
}

}  // namespace

model_shape parse_model_config(std::string_view text, std::string_view origin) {
    const auto refuse = [&](const std::string& why) {
        return config_error(fmt::format("model config {}: {}", origin, why),
                            "pass the config.json of a Hugging Face MoE model");
    };
    if (text.starts_with("\xEF\xBB\xBF")) {
        text.remove_prefix(3);  // byte order mark
    }
    if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
        throw refuse("it is empty");
    }
    json root;
    try {
        root = json::parse(text);
    } catch (const json::parse_error& e) {
        const bool cut = e.byte > text.size();
        throw refuse(fmt::format("it is not JSON{}: byte {} of {}: {}", cut ? " or was cut short" : "", e.byte,
                                 text.size(), e.what()));
    } catch (const json::exception& e) {
        throw refuse(fmt::format("it is not JSON: {}", e.what()));
    }
    if (!root.is_object()) {
        throw refuse(fmt::format("it holds a JSON {}, not an object", root.type_name()));
    }
    return reader(root, origin).read();
}

model_shape load_model_config(const std::string& path) {
    const auto refuse = [&](const std::string& why, const char* remedy = "") {
        return config_error(fmt::format("cannot read model config {}: {}", path, why), remedy);
    };
    std::error_code failure;
    if (std::filesystem::is_directory(path, failure)) {
        throw refuse("it is a directory", "name the config.json in it");
    }
    errno = 0;
    std::ifstream in(path, std::ios::binary);
    if (!in.is_open()) {
        throw refuse(errno != 0 ? std::strerror(errno) : "it cannot be opened");
    }
    std::string text;
    char part[16384];
    while (text.size() <= max_config_bytes && (in.read(part, sizeof part), in.gcount() > 0)) {
        text.append(part, static_cast<std::size_t>(in.gcount()));
    }
    if (in.bad()) {
        throw refuse("reading it failed");
    }
    if (text.size() > max_config_bytes) {
        throw refuse(fmt::format("it has more than {} bytes", max_config_bytes), "a config.json is a few kilobytes");
    }
    return parse_model_config(text, path);
}

}  // namespace epjit::jit
