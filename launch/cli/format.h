// Numbers, times, texts and tables as people read them.
// Threading: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace paceline::cli {

// "0.4 s", "12 s", "3m 05s", "2h 07m", "5d 03h"; "?" for what is no finite, non-negative number.
std::string FormatDuration(double seconds);

// "950", "51.2k", "1.30M", "7.00G": powers of 1000.
std::string FormatCount(double count);

// "1 rank", "4 ranks".
std::string FormatNumberOf(std::int64_t count, const std::string& thing);

// "512 B", "1.5 MiB": powers of 1024.
std::string FormatBytes(double bytes);

// "12.34 EUR"; small amounts keep three significant digits: "0.00123 EUR".
std::string FormatMoney(double amount, const std::string& currency);

// "91 %"; "?" when the whole is not positive.
std::string FormatShare(double part, double whole);

// Text of several lines on one; what is longer than `bytes_max` (0: any length) is cut and ends in
// "...", between two characters.
std::string FormatOneLine(std::string text, std::size_t bytes_max = 0);

using TableRow = std::vector<std::string>;
// Lines of columns that begin alike; every row has as many cells as the first.
std::string FormatTable(const std::vector<TableRow>& rows);

// "2024-06-11 09:30:05 UTC" of milliseconds since the Unix epoch.
std::string FormatTime(std::int64_t wall_ms);

}  // namespace paceline::cli
