package config

import _ "embed"

//go:embed default.toml
var defaultFile string

// DefaultFile is the default configuration with a comment for each key. It is
// made from this package's doc comments (see TestGenerated) and is what
// packaging installs.
func DefaultFile() string { return defaultFile }
