# `cmake --build build --target bundle`: build/paceline-VERSION-linux-x86_64.tar.zst.
get_property(paceline_bundle_programs GLOBAL PROPERTY PACELINE_PROGRAMS)
add_custom_target(bundle
  COMMAND ${PROJECT_SOURCE_DIR}/launch/bundle
    --build ${PROJECT_BINARY_DIR} --version ${PROJECT_VERSION} ${paceline_bundle_programs}
  DEPENDS ${paceline_bundle_programs}
  VERBATIM USES_TERMINAL)
