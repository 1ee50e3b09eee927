# Filled in by the bundle target.
