#include "coordinator/storage/lease.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "coordinator/storage/state_folder.h"

namespace paceline::storage {
namespace {

using std::chrono::milliseconds;

constexpr std::int64_t kLeaseBytesMax = 1 << 16;
// What a damaged file may ask for.
constexpr milliseconds kLimitMin{100};
constexpr milliseconds kLimitMax{3'600'000};

std::string PathOf(const std::string& folder, Epoch epoch) {
  return absl::StrCat(folder, "/", LeaseName(epoch.value()));
}

struct ProcessFacts {
  char state = '?';
  std::uint64_t start = 0;
};

// Of /proc/PID/stat: the third field, and the 22nd. Nothing: gone, or not for us to read.
std::optional<ProcessFacts> FactsOf(pid_t pid) {
  const absl::StatusOr<std::string> stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"), 1 << 16);
  if (!stat.ok()) return std::nullopt;
  const std::size_t name_end = stat->rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(stat->substr(name_end + 1));
  ProcessFacts facts;
  fields >> facts.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> facts.start;
  if (!fields) return std::nullopt;
  return facts;
}

// Empty: not known.
std::string PidSpaceHere() {
  const absl::StatusOr<std::string> boot = ReadFile("/proc/sys/kernel/random/boot_id", 256);
  char space[64] = {};
  const ssize_t length = ::readlink("/proc/self/ns/pid", space, sizeof(space) - 1);
  if (!boot.ok() || boot->empty() || length <= 0) return "";
  return absl::StrCat(boot->substr(0, boot->find('\n')), " ", space);
}

// Whether the lease's process is known to be gone. One that was killed and that its parent has not
// asked about yet is.
bool IsGone(const Lease& lease) {
  if (lease.pid <= 0 || lease.pid_space.empty() || lease.pid_space != PidSpaceHere()) return false;
  if (::kill(lease.pid, 0) != 0 && errno == ESRCH) return true;
  const std::optional<ProcessFacts> facts = FactsOf(lease.pid);
  if (!facts) return false;
  return facts->state == 'Z' || facts->state == 'X' || facts->start != lease.process_start;
}

std::string ToJson(const Lease& lease) {
  nlohmann::ordered_json json;
  json["epoch"] = lease.epoch.value();
  json["host"] = lease.host;
  json["pid"] = lease.pid;
  json["process_start"] = lease.process_start;
  json["pid_space"] = lease.pid_space;
  json["limit_ms"] = lease.limit.count();
  json["released"] = lease.released;
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::optional<Lease> ParseLease(const std::string& text) {
  Lease lease;
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    lease.epoch = Epoch{json.at("epoch").get<std::uint64_t>()};
    lease.host = json.at("host").get<std::string>();
    lease.pid = json.at("pid").get<pid_t>();
    lease.process_start = json.at("process_start").get<std::uint64_t>();
    lease.pid_space = json.at("pid_space").get<std::string>();
    lease.limit =
        std::clamp(milliseconds{json.at("limit_ms").get<std::int64_t>()}, kLimitMin, kLimitMax);
    lease.released = json.at("released").get<bool>();
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
  return lease;
}

// The file's content, and what changes with every renewal.
struct LeaseFile {
  std::string content;
  std::string mark;
};

// Opened anew each time: that is when a shared file system asks for what others have written.
absl::StatusOr<LeaseFile> ReadLeaseFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  struct stat facts = {};
  const bool known = ::fstat(file, &facts) == 0;
  const int error = errno;
  ::close(file);
  if (!known) return ErrnoStatus(error, absl::StrCat("stat ", path));
  LeaseFile lease;
  ASSIGN_OR_RETURN(lease.content, ReadFile(path, kLeaseBytesMax));
  lease.mark = absl::StrCat(facts.st_ino, " ", facts.st_mtim.tv_sec, ".", facts.st_mtim.tv_nsec);
  return lease;
}

}  // namespace

Lease LeaseHere(Epoch epoch, milliseconds limit) {
  Lease lease{.epoch = epoch, .pid = ::getpid(), .limit = limit};
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) == 0) lease.host = host;
  if (const auto facts = FactsOf(lease.pid)) {
    lease.process_start = facts->start;
    lease.pid_space = PidSpaceHere();
  }
  return lease;
}

absl::Status WriteLease(const std::string& folder, const Lease& lease) {
  RETURN_IF_ERROR(WriteFileAtomically(PathOf(folder, lease.epoch), ToJson(lease), 0600));
  ASSIGN_OR_RETURN(const StateFolder found, ListStateFolder(folder));
  for (const std::uint64_t epoch : found.leases) {
    // What stays is looked at by nobody.
    if (epoch < lease.epoch.value()) ::unlink(PathOf(folder, Epoch{epoch}).c_str());
  }
  return absl::OkStatus();
}

absl::Status RenewLease(const std::string& folder, Epoch epoch) {
  const std::string path = PathOf(folder, epoch);
  if (::utimensat(AT_FDCWD, path.c_str(), nullptr, 0) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("renewing ", path));
}

absl::StatusOr<LeaseWatch::View> LeaseWatch::Look(SteadyTime now) {
  View view;
  ASSIGN_OR_RETURN(const StateFolder found, ListStateFolder(folder_));
  if (found.journals.empty()) {
    view.free = true;
    view.text = "nobody has led";
    return view;
  }
  view.epoch = Epoch{found.journals.back().epoch};
  absl::StatusOr<LeaseFile> file = ReadLeaseFile(PathOf(folder_, view.epoch));
  if (!file.ok() && !absl::IsNotFound(file.status())) return file.status();
  const std::optional<Lease> lease = file.ok() ? ParseLease(file->content) : std::nullopt;

  const std::string mark =
      absl::StrCat(view.epoch.value(), " ", file.ok() ? file->mark + file->content : "");
  if (seen_ != mark) {
    view.renewed = seen_.has_value();
    seen_ = mark;
    since_ = now;
  }
  const std::string who =
      lease ? absl::StrCat("epoch ", view.epoch.value(), " of ", lease->host, ", pid ", lease->pid)
            : absl::StrCat("epoch ", view.epoch.value(), ", which has no lease,");
  const milliseconds limit = lease ? lease->limit : limit_;
  const auto silence = std::chrono::duration_cast<milliseconds>(now - since_);
  if (lease && lease->released) {
    view.free = true;
    view.text = absl::StrCat(who, " has ended");
  } else if (lease && IsGone(*lease)) {
    view.free = true;
    view.text = absl::StrCat(who, " is gone");
  } else if (silence > limit) {
    view.free = true;
    view.text = absl::StrCat(who, " has been silent for ", silence.count(), " ms");
  } else {
    view.text = absl::StrCat(who, " leads");
  }
  return view;
}

}  // namespace paceline::storage
