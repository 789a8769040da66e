// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/templates.hpp"

#include "epjit/error.hpp"
#include "jit/program/includes.hpp"
#include "templates/embedded.hpp"
#include "tests/jit/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace epjit::jit {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(includes, are_found_in_every_form_that_a_preprocessor_takes) {
    const auto found = scan_includes(
        "#include \"a.cuh\"\n"
        "  #  include   \"b/c.cuh\"  // why\n"
        "/* #include \"no.cuh\" */ #include \"d.cuh\"\n"
        "// #include \"no.cuh\"\n"
        "const char* s = \"/*\";\n"
        "#if 0\n#include \"skipped_branch.cuh\"\n#endif\n"
        "#inc\\\nlude \"spliced.cuh\"\n"
        "/*\n#include \"no.cuh\"\n*/\n"
        "#include/**/\"tight.cuh\"");
    std::vector<std::string> names;
    for (const auto& line : found) {
        EXPECT_EQ(line.form, include_form::quoted) << line.text;
        names.push_back(line.name);
    }
    EXPECT_THAT(names,
                testing::ElementsAre("a.cuh", "b/c.cuh", "d.cuh", "skipped_branch.cuh", "spliced.cuh", "tight.cuh"));
    EXPECT_EQ(found[1].number, 2);
    EXPECT_EQ(found[2].number, 3);
}

TEST(includes, of_other_forms_are_told_apart) {
    for (const char* text : {"#include <cuda_fp8.h>", "#include NAME", "#include_next \"a\"", "#import \"a\"",
                             "#if __has_include(\"a\")", "%: include <a>", "#include \"open", "#include \"\""}) {
        const auto found = scan_includes(text);
        ASSERT_EQ(found.size(), 1u) << text;
        EXPECT_EQ(found[0].form, include_form::other) << text;
    }
    EXPECT_TRUE(scan_includes("#included \"a\"\n#pragma once\nint include;").empty());
}

TEST(template_set, embedded_templates_include_only_each_other_by_quoted_name) {
    ASSERT_FALSE(templates::embedded_files().empty());
    const auto set = template_set::embedded();
    EXPECT_EQ(set.directory(), "");
    for (const auto& file : templates::embedded_files()) {
        EXPECT_EQ(set.find(file.name), file.text);
        for (const auto& line : scan_includes(file.text)) {
            EXPECT_EQ(line.form, include_form::quoted) << file.name << " line " << line.number << ": " << line.text;
            EXPECT_FALSE(set.find(line.name).empty()) << file.name << " includes " << line.name;
        }
        EXPECT_NO_THROW((void)set.closure(file.name));
    }
}

TEST(template_set, closure_holds_each_included_file_once_sorted) {
    const auto set = template_set::embedded();
    std::vector<std::string_view> names;
    for (const auto& [name, text] : set.closure("rows/rows_layout.cuh")) {
        names.push_back(name);
        EXPECT_EQ(text, set.find(name));
    }
    EXPECT_THAT(names, testing::ElementsAre("base/types.cuh", "exchange/channel_layout.cuh", "plan/plan_layout.cuh",
                                            "rows/rows_layout.cuh"));
}

TEST(template_set, a_folder_with_the_same_bytes_has_the_same_digest_wherever_it_lies) {
    const tests::scratch_folder a;
    const tests::scratch_folder b;
    tests::write_tiny_templates(a);
    tests::write_tiny_templates(b);
    const auto first = template_set::from_directory(a.path());
    EXPECT_EQ(first.directory(), a.path());
    EXPECT_EQ(first.closure_digest("plan/plan.cuh"),
              template_set::from_directory(b.path() + "/").closure_digest("plan/plan.cuh"));
    // Only what a root reaches counts.
    b.write("plan/unused.cuh", "int unused;\n");
    b.write("README.txt", "no template");
    EXPECT_EQ(first.closure_digest("plan/plan.cuh"),
              template_set::from_directory(b.path()).closure_digest("plan/plan.cuh"));
    b.write("base/types.cuh", std::string(first.find("base/types.cuh")) + "\n");
    const auto edited = template_set::from_directory(b.path());
    for (const char* root : {"plan/plan.cuh", "rows/scatter.cuh", "rows/gather.cuh", "rows/weight_gradient.cuh"}) {
        EXPECT_NE(first.closure_digest(root), edited.closure_digest(root)) << root;
    }
}

TEST(template_set, is_a_copy_that_later_edits_do_not_reach) {
    const tests::scratch_folder folder;
    tests::write_tiny_templates(folder);
    const auto set = template_set::from_directory(folder.path());
    const auto before = set.closure_digest("plan/plan.cuh");
    folder.write("plan/plan.cuh", "int other;\n");
    EXPECT_EQ(set.closure_digest("plan/plan.cuh"), before);
}

TEST(template_set, folders_that_cannot_serve_are_refused_with_the_reason) {
    EXPECT_THAT(
        [] { (void)template_set::from_directory("/nonexistent/templates"); },
        ThrowsMessage<config_error>(AllOf(HasSubstr("/nonexistent/templates"), HasSubstr("EPJIT_TEMPLATE_DIR"))));
    const tests::scratch_folder empty;
    EXPECT_THAT([&] { (void)template_set::from_directory(empty.path()); },
                ThrowsMessage<config_error>(HasSubstr("plan/plan.cuh")));
    const tests::scratch_folder folder;
    tests::write_tiny_templates(folder);
    folder.write("plan/plan.cuh", "#include <cuda/atomic>\n");
    EXPECT_THAT([&] { (void)template_set::from_directory(folder.path()); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("plan/plan.cuh line 1"), HasSubstr("<cuda/atomic>"))));
    folder.write("plan/plan.cuh", "#include \"plan/missing.cuh\"\n");
    EXPECT_THAT([&] { (void)template_set::from_directory(folder.path()); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("plan/plan.cuh includes \"plan/missing.cuh\""))));
}

}  // namespace
}  // namespace epjit::jit
