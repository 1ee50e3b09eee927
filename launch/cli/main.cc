// paceline: the command line.
#include "launch/cli/verbs.h"

int main(int argc, char** argv) { return paceline::cli::Main(argc, argv); }
