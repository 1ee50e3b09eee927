#include "worker/collectives/communicator.h"

#include "common/check.h"

namespace paceline {

std::size_t SizeOf(DataType type) {
  switch (type) {
    case DataType::kFloat32:
    case DataType::kInt32:
      return 4;
    case DataType::kFloat64:
    case DataType::kInt64:
      return 8;
    case DataType::kUint8:
      return 1;
  }
  PACELINE_CHECK(false);
}

}  // namespace paceline
