#include "common/logging.h"

#include <spdlog/async.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <exception>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

constexpr std::size_t kFileBytesMax = 64 << 20;
constexpr std::size_t kOlderFiles = 2;
constexpr std::size_t kLinesMax = 8192;  // that wait for the background thread

}  // namespace

absl::Status SetUpLogging(const LogOptions& options) {
  const spdlog::level::level_enum level = spdlog::level::from_str(options.level);
  if (level == spdlog::level::off && options.level != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("log level \"", options.level,
                     "\": must be trace, debug, info, warning, error, critical or off"));
  }
  std::shared_ptr<spdlog::sinks::sink> sink;
  if (options.file.empty()) {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    try {
      sink = std::make_shared<spdlog::sinks::rotating_file_sink_mt>(options.file, kFileBytesMax,
                                                                    kOlderFiles);
    } catch (const std::exception& error) {  // spdlog reports by exceptions.
      return absl::InvalidArgumentError(
          absl::StrCat("log file ", options.file, " cannot be written: ", error.what()));
    }
  }
  std::shared_ptr<spdlog::logger> logger;
  if (options.background) {
    spdlog::init_thread_pool(kLinesMax, /*thread_count=*/1);
    logger = std::make_shared<spdlog::async_logger>(options.program, std::move(sink),
                                                    spdlog::thread_pool(),
                                                    spdlog::async_overflow_policy::overrun_oldest);
  } else {
    logger = std::make_shared<spdlog::logger>(options.program, std::move(sink));
  }
  logger->set_level(level);
  logger->flush_on(spdlog::level::info);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %-8l %n[%P] %v");
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

}  // namespace paceline
