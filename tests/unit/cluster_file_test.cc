#include "common/planning/cluster_file.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline::planning {
namespace {

using ::testing::HasSubstr;

constexpr char kFile[] = R"([cluster]
name = "two-boxes"
nodes = 2
slots_per_node = 4
[device]
memory_gib = 80
float32_teraflops_per_second = 60
memory_gigabytes_per_second = 3000
[efficiency]
matrix = 0.5
experts = 0.4
attention_forward = 0.3
attention_backward = 0.2
memory = 0.8
[link]
inside_node_gigabytes_per_second = 400
between_nodes_gigabytes_per_second = 50
)";

std::string ErrorOf(const std::string& text) {
  return std::string(ParseClusterFile(text, "c.toml").status().message());
}

std::string ErrorWith(const std::string& from, const std::string& to) {
  const std::string text = absl::StrReplaceAll(kFile, {{from, to}});
  EXPECT_NE(text, kFile);
  return ErrorOf(text);
}

TEST(ClusterFileTest, GivenValuesAreReadAndTheRestIsDefault) {
  const absl::StatusOr<ClusterFile> file = ParseClusterFile(kFile, "c.toml");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->cluster.name, "two-boxes");
  EXPECT_EQ(file->slots(), 8);
  EXPECT_EQ(file->device.memory_gib, 80);
  EXPECT_EQ(file->efficiency.experts, 0.4);
  EXPECT_EQ(file->efficiency.overlap, 1);
  EXPECT_EQ(file->arithmetic.matrix, "float32");
  EXPECT_EQ(file->exchange.dispatch_bytes, 4);
}

TEST(ClusterFileTest, ProblemsNameFileLineKeyValueAndWhatIsAllowed) {
  EXPECT_EQ(ErrorWith("nodes = 2", "nodes = 0"),
            "c.toml:3: [cluster] nodes = 0: it must be an integer from 1 to 100000");
  EXPECT_EQ(ErrorWith("memory_gib", "memory_gb"),
            "c.toml:5: [device] memory_gib: is missing; it must be a number above 0 and at most "
            "1e+09\n"
            "c.toml:6: [device] memory_gb = 80: there is no such key; did you mean memory_gib?");
  EXPECT_THAT(ErrorWith("matrix = 0.5", "matrix = 1.5"),
              HasSubstr("c.toml:10: [efficiency] matrix = 1.5: it must be a number above 0"));
  EXPECT_THAT(ErrorWith("[device]", "[devise]"), HasSubstr("did you mean [device]?"));
  EXPECT_THAT(ErrorWith("matrix = 0.5", "matrix = nan"), HasSubstr("[efficiency] matrix"));
}

TEST(ClusterFileTest, ArithmeticNeedsAPeak) {
  EXPECT_THAT(ErrorOf(std::string(kFile) + "[arithmetic]\nmatrix = \"float8\"\n"),
              HasSubstr("[arithmetic] matrix = \"float8\": needs [device] "
                        "float8_teraflops_per_second above 0"));
}

TEST(ClusterFileTest, FailuresNeedACheckpointRate) {
  EXPECT_THAT(ErrorOf(std::string(kFile) + "[reliability]\nnode_mtbf_hours = 100\n"),
              HasSubstr("copy_gigabytes_per_second: must be above 0"));
}

TEST(ClusterFileTest, SetReplacesAValue) {
  const absl::StatusOr<ClusterFile> file =
      ParseClusterFile(kFile, "c.toml", {{"cluster.nodes=16", "."}});
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->cluster.nodes, 16);
}

TEST(ClusterFileTest, MissingFileIsNotFound) {
  const absl::Status status = LoadClusterFile("/nowhere/c.toml").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such cluster file"));
}

}  // namespace
}  // namespace paceline::planning
