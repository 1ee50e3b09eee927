#include "launch/cli/format.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <ctime>

namespace paceline::cli {
namespace {

__attribute__((format(printf, 1, 2))) std::string Printed(const char* format, ...) {
  char text[96];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

// `value` below 1000 with three significant digits.
std::string ThreeDigits(double value) {
  if (value < 9.995) return Printed("%.2f", value);
  if (value < 99.95) return Printed("%.1f", value);
  return Printed("%.0f", value);
}

}  // namespace

std::string FormatDuration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e12) return "?";
  if (seconds < 9.95) return Printed("%.1f s", seconds);
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (whole < 60) return Printed("%lld s", whole);
  if (whole < 3600) return Printed("%lldm %02llds", whole / 60, whole % 60);
  if (whole < 86400) return Printed("%lldh %02lldm", whole / 3600, whole / 60 % 60);
  return Printed("%lldd %02lldh", whole / 86400, whole / 3600 % 24);
}

std::string FormatCount(double count) {
  if (!std::isfinite(count)) return "?";
  if (std::abs(count) < 999.5) return Printed("%.0f", count);
  const char* suffixes = "kMGTPEZYRQ";
  double value = count / 1000;
  while (std::abs(value) >= 999.5 && suffixes[1] != '\0') {
    value /= 1000;
    ++suffixes;
  }
  return ThreeDigits(value) + *suffixes;
}

std::string FormatNumberOf(std::int64_t count, const std::string& thing) {
  return std::to_string(count) + " " + thing + (count == 1 ? "" : "s");
}

std::string FormatBytes(double bytes) {
  if (!(bytes >= 0) || std::isinf(bytes)) return "?";
  if (bytes < 1024) return Printed("%.0f B", bytes);
  const char* suffixes = "KMGTPE";
  double value = bytes / 1024;
  while (value >= 1023.5 && suffixes[1] != '\0') {
    value /= 1024;
    ++suffixes;
  }
  return ThreeDigits(value) + " " + *suffixes + "iB";
}

std::string FormatMoney(double amount, const std::string& currency) {
  if (!std::isfinite(amount)) return "? " + currency;
  const double size = std::abs(amount);
  if (size >= 1 || size < 1e-12) return Printed("%.2f ", amount) + currency;
  const int decimals = 2 - static_cast<int>(std::floor(std::log10(size)));
  return Printed("%.*f ", decimals, amount) + currency;
}

std::string FormatShare(double part, double whole) {
  if (!(whole > 0) || !std::isfinite(part)) return "?";
  return Printed("%.0f %%", 100 * part / whole);
}

std::string FormatOneLine(std::string text, std::size_t bytes_max) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  if (bytes_max == 0 || text.size() <= bytes_max) return text;
  std::size_t end = std::max<std::size_t>(bytes_max, 3) - 3;
  // 10xxxxxx: a byte within a character of UTF-8.
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

std::string FormatTable(const std::vector<TableRow>& rows) {
  std::vector<std::size_t> widths(rows.empty() ? 0 : rows.front().size(), 0);
  for (const TableRow& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const TableRow& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i] + std::string(widths[i] - row[i].size() + 2, ' ');
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string FormatTime(std::int64_t wall_ms) {
  const std::time_t seconds = wall_ms / 1000;
  std::tm parts{};
  if (gmtime_r(&seconds, &parts) == nullptr) return "?";
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

}  // namespace paceline::cli
