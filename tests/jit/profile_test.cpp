// SPDX-License-Identifier: Apache-2.0
// Profiles: what is read, what is refused, which entry an exchange takes, and what knobs do to programs.
#include "epjit/jit/profile.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

namespace epjit::jit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr target_arch hopper{90, 'a'};

std::string with_entry(const std::string& entry) {
    return fmt::format(R"({{"epjit_profile": 1, "entries": [{}]}})", entry);
}

std::string refusal(const std::string& text) {
    try {
        parse_profile(text, "p.json");
    } catch (const config_error& e) {
        return e.what();
    }
    return "accepted";
}

tuning_key h200(std::int32_t tokens = 4096) {
    tuning_key key;
    key.gpu = "NVIDIA H200";
    key.arch = hopper;
    key.link = link_kind::nvlink;
    key.ranks = 2;
    key.hidden = 7168;
    key.experts = 256;
    key.topk = 8;
    key.input = key.dispatch = key.combine = dtype::bf16;
    key.scales = scale_type::none;
    key.tokens = tokens;
    return key;
}

profile_entry entry_for(tuning_key key, std::int32_t senders) {
    profile_entry e;
    e.key = std::move(key);
    e.values.dispatch_senders = senders;
    return e;
}

TEST(profile, what_is_written_is_read_back) {
    profile_entry full = entry_for(h200(), 12);
    full.key.layout = layout::flat;
    for (const knob_info& k : knob_infos()) {
        full.values.*k.field = k.most;
    }
    full.measured = {1.5, 2, 3, 4.25};
    const std::vector<profile_entry> entries{full, entry_for({}, 3)};
    EXPECT_EQ(parse_profile(profile_text(entries), "x").entries, entries);
}

TEST(profile, every_error_names_the_file_the_field_and_what_is_accepted) {
    struct bad {
        std::string text, place;
    };
    const bad cases[] = {
        {"", "it is not JSON"},
        {"[]", "the file is []; expected an object"},
        {"{}", "it has no \"epjit_profile\""},
        {R"({"epjit_profile": "1", "entries": []})", "epjit_profile is \"1\"; expected a whole number"},
        {R"({"epjit_profile": 1})", "entries is not there; expected an array"},
        {R"({"epjit_profile": 1, "entries": [], "entry": 1})", "entry is not a field"},
        {R"({"epjit_profile": 1, "entries": [], "entries": []})", "\"entries\" is there twice"},
        {with_entry("7"), "entries[0] is 7; expected an object"},
        {with_entry("{}"), "entries[0].knobs is not there"},
        {with_entry(R"({"knobs": {}, "hiden": 5})"), "entries[0].hiden is not a field"},
        {with_entry(R"({"knobs": {}, "hidden": 0})"), "entries[0].hidden is 0; expected a whole number from 1"},
        {with_entry(R"({"knobs": {}, "hidden": 1e3})"), "entries[0].hidden is 1000.0"},
        {with_entry(R"({"knobs": {}, "topk": 99999999999999999999})"), "entries[0].topk is"},
        {with_entry(R"({"knobs": {}, "ranks": true})"), "entries[0].ranks is true"},
        {with_entry(R"({"knobs": {}, "arch": "h200"})"), "entries[0].arch is \"h200\"; expected a target such as"},
        {with_entry(R"({"knobs": {}, "link": "fast"})"), "expected none, pcie or nvlink"},
        {with_entry(R"({"knobs": {}, "gpu": ""})"), "expected a GPU's name"},
        {with_entry(R"({"knobs": {}, "combine": "fp8_e4m3"})"), "expected bf16, fp16 or f32"},
        {with_entry(R"({"knobs": {}, "layout": 3})"), "expected expert_major, flat or masked"},
        {with_entry(R"({"knobs": {}, "tokens": 100})"), "entries[0].tokens is 100; expected a power of two"},
        {with_entry(R"({"knobs": 3})"), "entries[0].knobs is 3; expected an object"},
        {with_entry(R"({"knobs": {"senders": 3}})"), "entries[0].knobs.senders is not a field"},
        {with_entry(R"({"knobs": {"dispatch_senders": 0}})"), "entries[0].knobs.dispatch_senders is 0; expected"},
        {with_entry(R"({"knobs": {"dispatch_launches": 3}})"), "from 1 to 2"},
        {with_entry(R"({"knobs": {"gather_threads": 100}})"), "a multiple of 32"},
        {with_entry(R"({"knobs": {}, "measured": {"us": 1}})"), "entries[0].measured.us is not a field"},
        {with_entry(R"({"knobs": {}, "measured": {"combine_us": -1}})"), "expected microseconds"},
        {with_entry(R"({"knobs": {}}, {"knobs": {"dispatch_senders": 1}})"),
         "entries[1] is for the same as entries[0]"},
    };
    for (const bad& b : cases) {
        EXPECT_THAT(refusal(b.text), AllOf(HasSubstr("profile p.json: "), HasSubstr(b.place))) << b.text;
    }
    EXPECT_EQ(refusal(with_entry(R"({"knobs": {}})")), "accepted");
}

TEST(profile, a_newer_format_is_unsupported_and_a_missing_file_names_itself) {
    try {
        parse_profile(R"({"epjit_profile": 2, "anything": 1})", "p.json");
        FAIL() << "no error";
    } catch (const unsupported_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("epjit_profile is 2, this version reads 1"));
    }
    for (const char* path : {"/nowhere/p.json", "/"}) {
        try {
            load_profile(path);
            FAIL() << "no error";
        } catch (const config_error& e) {
            EXPECT_THAT(e.what(), AllOf(HasSubstr(path), HasSubstr("cannot be read"))) << path;
        }
    }
}

TEST(profile, merging_replaces_the_same_key_only) {
    profile p;
    merge_entry(p, entry_for(h200(), 1));
    merge_entry(p, entry_for(h200(128), 2));
    merge_entry(p, entry_for(h200(), 3));
    ASSERT_EQ(p.entries.size(), 2U);
    EXPECT_EQ(p.entries[0].values.dispatch_senders, 3);
    EXPECT_EQ(p.entries[1].values.dispatch_senders, 2);
}

TEST(profile, tokens_have_the_class_of_the_power_of_two_above) {
    EXPECT_EQ(token_class(0), 1);
    EXPECT_EQ(token_class(1), 1);
    EXPECT_EQ(token_class(3), 4);
    EXPECT_EQ(token_class(4096), 4096);
    EXPECT_EQ(token_class(4097), 8192);
    EXPECT_EQ(token_class(2147483647), 1 << 30);
}

TEST(tuned, nothing_tuned_is_the_cost_model) {
    const tuned_knobs k = choose_knobs(h200(), {});
    EXPECT_EQ(k.programs(), knobs{});
    EXPECT_EQ(k.launches(layout::flat, 7), cost_model_launches());
    EXPECT_EQ(k.launches_from(layout::flat, 7), tuned_knobs::source::cost_model);
    EXPECT_FALSE(k.tuned());
    EXPECT_EQ(tuned_knobs().launches(layout::masked, 0), cost_model_launches()) << "also without a choice";
}

TEST(tuned, the_built_in_profile_is_the_h200s_and_loads_the_programs_of_the_cost_model) {
    const std::vector<const profile*> built_in{&builtin_profile()};
    const tuned_knobs k = choose_knobs(h200(), built_in);
    EXPECT_EQ(k.launches_from(layout::flat, 4096), tuned_knobs::source::built_in);
    EXPECT_EQ(k.launches(layout::flat, 4096).dispatch_senders, 0) << "by the rows' length";
    EXPECT_EQ(k.programs(), knobs{});
    tuning_key other = h200();
    other.gpu = "NVIDIA H100";
    EXPECT_FALSE(choose_knobs(other, built_in).tuned()) << "an unknown GPU gets the cost model";
    other = h200();
    other.link = link_kind::pcie;
    EXPECT_FALSE(choose_knobs(other, built_in).tuned());
}

TEST(tuned, the_entry_with_most_fields_counts_and_the_callers_profile_before_the_built_in) {
    tuning_key flat_128 = h200(128);
    flat_128.layout = layout::flat;
    tuning_key any_size;
    any_size.gpu = "NVIDIA H200";
    profile own;
    own.entries = {entry_for(any_size, 5), entry_for(flat_128, 6), entry_for(h200(128), 7)};
    const std::vector<const profile*> both{&own, &builtin_profile()};
    const tuned_knobs k = choose_knobs(h200(4096), both);
    EXPECT_EQ(k.launches(layout::flat, 128).dispatch_senders, 6);
    EXPECT_EQ(k.launches(layout::flat, 100).dispatch_senders, 6) << "of the same class";
    EXPECT_EQ(k.launches(layout::masked, 128).dispatch_senders, 7);
    EXPECT_EQ(k.launches(layout::flat, 256).dispatch_senders, 5);
    EXPECT_EQ(k.launches(layout::flat, 64).dispatch_senders, 5);
    EXPECT_EQ(k.launches(layout::flat, 128).combine_senders_percent, 35)
        << "what an entry leaves out is the cost model's";
    EXPECT_EQ(k.launches_from(layout::flat, 64), tuned_knobs::source::file);
}

TEST(tuned, programs_are_those_for_the_most_tokens_of_the_exchange) {
    profile own;
    for (const std::int32_t tokens : {128, 4096, 8192}) {
        profile_entry e = entry_for(h200(tokens), 9);
        e.values.gather_threads = tokens == 128 ? 64 : tokens == 4096 ? 96 : 160;
        own.entries.push_back(e);
    }
    const std::vector<const profile*> list{&own};
    EXPECT_EQ(choose_knobs(h200(4000), list).programs().gather_threads, 96);
    EXPECT_EQ(choose_knobs(h200(128), list).programs().gather_threads, 64);
    EXPECT_EQ(choose_knobs(h200(2048), list).programs(), knobs{}) << "none is for that class";
    EXPECT_EQ(choose_knobs(h200(2048), list).programs_from(), tuned_knobs::source::cost_model);
}

TEST(tuned, entries_for_something_else_are_never_taken) {
    const std::vector<void (*)(tuning_key&)> changes{[](tuning_key& k) { k.gpu = "NVIDIA B200"; },
                                                     [](tuning_key& k) {
                                                         k.arch = target_arch{100, 'a'};
                                                     },
                                                     [](tuning_key& k) { k.link = link_kind::none; },
                                                     [](tuning_key& k) { k.ranks = 4; },
                                                     [](tuning_key& k) { k.hidden = 4096; },
                                                     [](tuning_key& k) { k.experts = 128; },
                                                     [](tuning_key& k) { k.topk = 4; },
                                                     [](tuning_key& k) { k.input = dtype::f32; },
                                                     [](tuning_key& k) { k.dispatch = dtype::fp8_e4m3; },
                                                     [](tuning_key& k) { k.scales = scale_type::f32; },
                                                     [](tuning_key& k) { k.combine = dtype::fp16; }};
    for (std::size_t i = 0; i < changes.size(); ++i) {
        tuning_key key = h200();
        changes[i](key);
        profile own;
        own.entries = {entry_for(key, 9)};
        const std::vector<const profile*> list{&own};
        EXPECT_FALSE(choose_knobs(h200(), list).tuned()) << i;
    }
}

TEST(tuned, more_entries_than_there_is_room_for_keep_the_most_specific) {
    profile own;
    tuning_key key;
    for (std::int32_t bits = 0; bits < 1 << 9; ++bits) {  // which of nine fields an entry names
        const tuning_key full = h200();
        key = {};
        if ((bits & 1) != 0)
            key.gpu = full.gpu;
        if ((bits & 2) != 0)
            key.arch = full.arch;
        if ((bits & 4) != 0)
            key.link = full.link;
        if ((bits & 8) != 0)
            key.ranks = full.ranks;
        if ((bits & 16) != 0)
            key.hidden = full.hidden;
        if ((bits & 32) != 0)
            key.experts = full.experts;
        if ((bits & 64) != 0)
            key.topk = full.topk;
        if ((bits & 128) != 0)
            key.input = full.input;
        if ((bits & 256) != 0)
            key.dispatch = full.dispatch;
        own.entries.push_back(entry_for(key, 1 + bits));
    }
    const std::vector<const profile*> list{&own};
    EXPECT_EQ(choose_knobs(h200(), list).launches(layout::flat, 4096).dispatch_senders, 1 << 9);
}

TEST(knob_values, change_the_programs_of_their_kind_as_far_as_rows_allow) {
    knobs k;
    k.scatter_stages = 48;
    k.dispatch_stages = 6;
    k.dispatch_movers = 16;
    k.gather_threads = 64;
    k.combine_threads = 96;
    k.combine_stages = 12;
    k.combine_teams = 8;
    run_request run{.hidden = 7168, .num_experts = 256, .num_slots = 256, .topk = 8, .num_ranks = 2, .arch = hopper};
    run.exchange = exchange_kind::lsa;
    run.windows = true;
    const std::vector<variant_spec> plain = run_variants(run);
    run.programs = k;
    const std::vector<variant_spec> tuned = run_variants(run);
    ASSERT_EQ(tuned.size(), plain.size());
    for (std::size_t i = 0; i < plain.size(); ++i) {
        switch (plain[i].kind) {
            case kernel_kind::permute_dispatch: EXPECT_EQ(tuned[i], plain[i]) << "no more rows fit"; break;
            case kernel_kind::direct_dispatch:
            case kernel_kind::exchange_dispatch:
                EXPECT_EQ(tuned[i].stages, 6);
                EXPECT_EQ(tuned[i].movers, 3) << "two rows in flight each at least";
                break;
            case kernel_kind::unpermute_combine: EXPECT_EQ(tuned[i].threads, 64); break;
            case kernel_kind::exchange_combine:
                EXPECT_EQ(tuned[i].threads, plain[i].threads) << "fewer would not hold the row's sum";
                EXPECT_EQ(tuned[i].stages, 12);
                EXPECT_EQ(tuned[i].movers, 1) << "a block has no threads for two teams of such a row";
                break;
            default: EXPECT_EQ(tuned[i], plain[i]);
        }
    }
}

TEST(knob_values, of_a_profile_are_listed_with_a_models_variants) {
    variant_request request;
    request.model = find_model("deepseek-v3");
    request.ranks = {2};
    request.archs = {hopper};
    const std::size_t base = list_variants(request).size();
    request.tuned = builtin_profile().entries;
    EXPECT_EQ(list_variants(request).size(), base) << "the built-in profile loads the cost model's programs";
    profile_entry e = entry_for(h200(), 9);
    e.values.combine_stages = 10;
    e.values.dispatch_movers = 2;
    request.tuned.push_back(e);
    const std::vector<variant_spec> list = list_variants(request);
    EXPECT_EQ(list.size(), base + 2);
    run_request run{.hidden = 7168, .num_experts = 256, .num_slots = 256, .topk = 8, .num_ranks = 2, .arch = hopper};
    run.exchange = exchange_kind::lsa;
    run.programs = e.values;
    for (const variant_spec& spec : run_variants(run)) {
        EXPECT_NE(std::find(list.begin(), list.end(), spec), list.end()) << describe(spec);
    }
    request.tuned.back().key.hidden = 4096;
    EXPECT_EQ(list_variants(request).size(), base) << "an entry for another model";
}

}  // namespace
}  // namespace epjit::jit
